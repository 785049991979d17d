"""Where nothing crashes the engine does what its model says, for whatever sequence of transactions is drawn."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from jin_core import Jin
from scenarios.engine import _model, _store, generated
from scenarios.engine._store import Change


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pristine"
    path.mkdir()
    generated.first_state(path)
    return path


def test_the_model_begins_where_the_repository_does(pristine: Path) -> None:
    assert _model.look(pristine) == generated.FIRST


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(ops=generated.transactions())
def test_the_engine_does_what_the_model_says(pristine: Path, ops: list[list[Change]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        work = Path(place) / "work"
        shutil.copytree(pristine, work, symlinks=True)
        state = generated.FIRST
        with Jin.open(work, patience=0.005) as jin:
            for changes in ops:
                outcome = _store.commit(jin, changes)
                new = _model.after(state, changes)
                assert (outcome in ("committed", "nothing to do")) == (new is not None), (outcome, changes)
                state = new or state
                assert _model.look(work) == state
