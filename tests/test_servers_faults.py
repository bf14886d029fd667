"""What goes wrong on an inference server: it is asked anew, named in an error, or done without."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

import pytest
from server_pairs import CONFIG, DIALECTS, DRAFT, LEADER, connect, scripted, two_servers
from span_requests import shape
from toy import scripted_pair, token_id, vocabulary
from waiting import TIME_OUTS

from foreal_core import ServerError

HEALED = (
    *("429", "503", "500", "drop", "drop:1", "drop:3", "error:2", "cut:2", "lose:2", "lose:1"),
)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_goes_wrong_once_changes_no_text(dialect: str) -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT), (dialect, dialect)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        expected = shape(decoder.generate(" so", **CONFIG))
        for fault in HEALED if dialect == "vllm" else HEALED[3:]:
            for server in servers:
                server.faults = [fault]
                written = decoder.generate(" so", **CONFIG)
                assert shape(written) == expected, (fault, server is servers[0])
                retries = [counts["retries"] for counts in written.cost.servers.values()]
                assert not server.faults and sum(map(int, retries)) <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dialect", "fault", "said"),
    [
        ("vllm", "no ids", "gives no token ids"),
        ("sglang", "no ids", "no list of token ids"),
        ("llama.cpp", "no ids", "gives no token ids"),
        ("vllm", "more", "where 32 were asked for"),
        ("vllm", "other id", "serves another model"),
        ("vllm", "400", "HTTP 400: said 400"),
    ],
)
def test_a_server_that_does_something_else_is_named(dialect: str, fault: str, said: str) -> None:
    two = scripted_pair(LEADER, DRAFT)
    loop = {" so": " so"}
    with (
        two_servers(scripted(loop), scripted(loop), (dialect, dialect)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        servers[0].faults = [fault]
        with pytest.raises(ServerError, match=said) as caught:
            decoder.generate(" so", policy="leader", max_new_tokens=40)
        assert servers[0].url in str(caught.value)
        assert not caught.value.lost
        # The next call works.
        assert decoder.generate(" so", policy="leader", max_new_tokens=3).text == " so so so"


def test_a_server_that_is_gone_is_an_error_that_names_it_and_its_return_is_noticed() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, retries=1) as decoder,
    ):
        expected = shape(decoder.generate(" so", **CONFIG))
        servers[1].kill()
        with pytest.raises(ServerError, match="failed 2 times in a row") as caught:
            decoder.generate(" so", **CONFIG)
        assert caught.value.lost and caught.value.author == "draft"
        assert caught.value.cost is not None and caught.value.cost.servers["draft"]["requests"] == 2
        servers[1].start()
        assert shape(decoder.generate(" so", **CONFIG)) == expected
        servers[1].kill()
        servers[1].name = "another"
        servers[1].start()
        servers[1].faults = ["drop"]
        with pytest.raises(ServerError, match="came back as another"):
            decoder.generate(" so", **CONFIG)


def test_a_server_killed_in_mid_sentence_loses_and_doubles_nothing() -> None:
    """Restarted at once, and its client asks on from the last token."""
    two = scripted_pair(LEADER, DRAFT)
    rng = random.Random(11)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, retries=50) as decoder,
    ):
        expected = shape(decoder.generate(" so", **CONFIG))
        for _ in range(12):
            stream = decoder.stream(" so", **CONFIG)
            for _ in zip(range(rng.randrange(1, 20)), stream, strict=False):
                pass
            victim = rng.choice(servers)
            victim.kill()
            victim.start()
            for _ in stream:
                pass
            assert shape(stream.result) == expected


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with two_servers(scripted(LEADER), scripted(DRAFT)) as servers:
        for timeout in TIME_OUTS:
            with contextlib.suppress(ServerError):  # the machine is too slow to connect in it
                decoder = connect(servers, two.tokenizer, timeout=timeout, retries=0)
                break
        with decoder:
            servers[0].faults = ["hang"]
            with pytest.raises(ServerError, match="ReadTimeout"):
                decoder.generate(" so", policy="leader")


@pytest.mark.parametrize("survivor", ["leader", "draft"])
def test_the_one_that_is_left_goes_on_alone_and_the_bill_says_so(survivor: str) -> None:
    two = scripted_pair(LEADER, DRAFT)
    lost = "draft" if survivor == "leader" else "leader"
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, retries=0, on_server_lost=survivor) as decoder,
    ):
        servers[lost == "draft"].faults = ["drop:3"]
        written = decoder.generate(" so", **CONFIG)
        with pytest.raises(ServerError, match=f"the {survivor}'s server"):
            servers[survivor == "draft"].kill()
            decoder.generate(" so", **CONFIG)
    assert lost in written.authors
    assert written.cost.servers[lost]["lost"]
    assert not written.cost.servers[survivor]["lost"]
    assert written.warnings == (
        f"the {lost}'s server was lost: the {survivor} wrote the rest alone.",
    )
    [last] = [one.end for one in written.segments if one.reason == "server_lost"]
    assert set(written.authors[last:]) == {survivor}
    assert len(written.token_ids) == 30
    assert "".join(written.texts) == written.text


def test_a_row_that_no_tokenizer_knows_is_banned_and_the_token_asked_for_anew() -> None:
    """It may win a server's arg-max; in this process its logit is masked."""
    two = scripted_pair(LEADER, LEADER)
    unknown, script = len(vocabulary()), scripted(LEADER)

    def follows(ids: Sequence[int]) -> int:
        return unknown if ids[-1] == token_id(" x") else script(ids)

    with (
        two_servers(follows, follows, ("llama.cpp", "llama.cpp"), rows=unknown + 1) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        written = decoder.generate(" so", policy="leader", max_new_tokens=20)
    assert written.text == " we add x"  # the test's server writes the least id instead: an end
    assert written.finish_reason == "stop"
