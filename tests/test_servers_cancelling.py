"""Cancelled requests end the work of both inference servers; connections are bounded."""

from __future__ import annotations

import asyncio
import random

from server_pairs import CONFIG, DRAFT, LEADER, connect, scripted, two_servers
from toy import scripted_pair
from waiting import wait_until


def test_cancelled_requests_leave_no_work_and_no_connection() -> None:
    loop = {" so": " so"}
    two = scripted_pair(loop, loop)
    rng = random.Random(2)
    with two_servers(scripted(loop), scripted(loop)) as servers:
        with connect(servers, two.tokenizer) as decoder:
            for server in servers:
                server.pause = lambda: asyncio.sleep(0.001)
            futures = [
                decoder.submit(" so", lead_count=3, max_new_tokens=rng.choice([20, 200]), seed=seed)
                for seed in range(24)
            ]
            cancelled = rng.sample(futures, 12)
            for future in cancelled:
                future.cancel()
            for future in futures:
                if future not in cancelled:
                    future.result()
            decoder.check_integrity()
            wait_until(lambda: all(server.writing == 0 for server in servers), "work goes on")
        wait_until(lambda: all(server.open == 0 for server in servers), "connections stay")


def test_a_cancelled_request_ends_the_work_of_a_server_that_says_nothing() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        servers[0].faults = ["hang"]
        future = decoder.submit(" so", policy="leader")
        while not servers[0].asked:
            pass
        future.cancel()
        decoder.check_integrity()
        assert decoder.generate(" so", policy="leader", max_new_tokens=2).text == " we add"


def test_connections_are_bounded_and_nobody_starves() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, max_connections=3) as decoder,
    ):
        futures = [decoder.submit(" so", **(CONFIG | {"seed": seed})) for seed in range(24)]
        assert {len(future.result().token_ids) for future in futures} == {30}
    assert all(1 <= server.most_open <= 3 for server in servers)
