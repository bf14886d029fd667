"""What the tests of the decoder share: one engine and one naive reference per toy pair."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from integrations import Gate, Passes
from reference import Reference
from toy import MAX_BATCH_SIZE, Family, fresh_pair, pair

from foreal_core import FoReaLDecoder

torch.set_num_threads(1)
# No test depends on how fast the machine is.
_untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("exploring", _untimed)  # --hypothesis-profile=exploring looks elsewhere
settings.register_profile("same examples each time", _untimed, derandomize=True)
settings.load_profile("same examples each time")
# Every request's state is checked when it ends, and the models' whenever nothing runs.
os.environ["FOREAL_CHECK"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "hub": None if os.environ.get("FOREAL_TEST_HUB") else "needs the hub: FOREAL_TEST_HUB=1",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def decoder_of() -> Iterator[Callable[[Family], FoReaLDecoder]]:
    """The decoder of a family's pair; its state after one test is the next one's start."""
    made: dict[Family, FoReaLDecoder] = {}

    def decoder(family: Family) -> FoReaLDecoder:
        if family not in made:
            two = fresh_pair(family)
            made[family] = FoReaLDecoder(
                two.leader, two.draft, two.tokenizer, max_batch_size=MAX_BATCH_SIZE
            )
        return made[family]

    yield decoder
    for one in made.values():
        one.close()


@pytest.fixture(scope="session")
def bundled() -> Iterator[FoReaLDecoder]:
    """The bundled pair; as it was made, after each test too: bills do not hang on what other tests
    have asked."""
    with FoReaLDecoder.demo(prefix_cache=False) as decoder:
        yield decoder


@pytest.fixture(scope="session")
def reference_of() -> Callable[[Family], Reference]:
    """The naive reference of a family's pair."""
    made: dict[Family, Reference] = {}

    def reference(family: Family) -> Reference:
        if family not in made:
            made[family] = Reference(pair(family))
        return made[family]

    return reference


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pair as it was saved: the leader's folder and the draft's."""
    two, root = fresh_pair("llama"), tmp_path_factory.mktemp("pair")
    for name, model in (("leader", two.leader), ("draft", two.draft)):
        model.save_pretrained(root / name)
        two.tokenizer.save_pretrained(root / name)
    return str(root / "leader"), str(root / "draft")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Every pass of every model from here on."""
    return Passes(monkeypatch)


@pytest.fixture
def slow_models(passes: Passes) -> None:
    """Models that write for seconds what takes no time: a long text is not over before a test that
    waits for its first token goes on."""
    passes.before = lambda: time.sleep(0.01)


@pytest.fixture
def gate(passes: Passes) -> Iterator[Gate]:
    """Models that stand still until it is opened."""
    with Gate(passes) as one:
        yield one
