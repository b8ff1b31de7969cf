"""Numbers that are not finite end the call, and no state moves."""

import numpy as np
import pytest
from helpers import SMALL, folder, model, random_model, rwkv, save


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp16", "cpu bf16", "cpu int8", "cpu int4"])
def test_nan_in_any_tensor_is_found_and_changes_no_state(tmp_path, strategy):
    sizes = {**SMALL, "F": 64}
    weights = random_model(**sizes)
    good = rwkv.Engine(str(model(**sizes).path()), strategy, threads=1)
    start = good.new_state()
    good.forward([1, 2, 3], start)
    blob, missed = start.to_bytes(), []
    for name in weights:
        bad = weights[name].copy()
        bad.flat[bad.shape[-1] * (5 if name == "emb.weight" else 0)] = np.nan
        try:
            engine = rwkv.Engine(
                str(save(tmp_path / "a.pth", {**weights, name: bad})), strategy, threads=1
            )
        except rwkv.NonFiniteError:
            continue
        state = engine.state_from_bytes(blob, check_weights=False)
        before = state.to_bytes()
        outputs = ["last", "all"] if name == "head.weight" else ["last", "all", "none", "hidden"]
        for output in outputs:
            for tokens in ([5], [1, 5, 2, 3]):
                try:
                    engine.forward(tokens, state, output=output)
                    missed.append((name, output, len(tokens)))
                    state = engine.state_from_bytes(before, check_weights=False)
                except rwkv.NonFiniteError:
                    assert state.to_bytes() == before, name
    assert missed == []


def test_one_bad_row_fails_the_whole_batch_and_no_state_moves():
    weights = random_model(**SMALL)
    weights["emb.weight"][5] = np.nan
    engine = rwkv.Engine(str(save(folder() / "one-bad-row.pth", weights)), "cpu fp32", threads=2)
    states = [engine.new_state() for _ in range(4)]
    engine.forward_batch([[1], [2], [3], [4]], states)
    before = [state.to_bytes() for state in states]
    for rows in ([[1], [5], [2], [3]], [[1, 2, 3], [4], [5, 1, 1], [2]], [[5], [5], [5], [5]]):
        with pytest.raises(rwkv.NonFiniteError):
            engine.forward_batch(rows, states)
        assert [state.to_bytes() for state in states] == before
    alone = engine.state_from_bytes(before[2])
    found = engine.forward_batch([[1], [2], [3], [4]], states)
    assert found[2].tobytes() == engine.forward([3], alone).tobytes()


def test_infinity_is_found_too(tmp_path):
    weights = random_model(**SMALL)
    weights["head.weight"][3, 3] = np.inf
    engine = rwkv.Engine(str(save(tmp_path / "a.pth", weights)), "cpu fp32", threads=1)
    with pytest.raises(rwkv.NonFiniteError):
        engine.forward([1], engine.new_state())
