"""Algebra of directions, and files that give back exactly what was written."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from demur.activations import ActivationMeans, mean_activations, stream_at
from demur.directions import (
    Direction,
    cosine,
    difference_in_means,
    load_directions,
    orthogonalize,
    save_directions,
)
from demur.directions._direction import EPSILON
from demur.errors import RunFolderError

numbers = st.floats(-100, 100, allow_subnormal=False)


def vectors(width):
    return st.lists(numbers, min_size=width, max_size=width).map(lambda row: torch.tensor(row, dtype=torch.float64))


pairs = st.integers(1, 8).flatmap(lambda width: st.tuples(vectors(width), vectors(width)))


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_difference_in_means_is_positive_minus_negative():
    positive, negative = random(3, 2, 4, seed=1), random(3, 2, 4, seed=2)
    difference = difference_in_means(ActivationMeans(positive, 5), ActivationMeans(negative, 9))
    assert torch.equal(difference, positive - negative)


def test_difference_in_means_separates_the_two_sets_it_was_made_of(tiny):
    """r . (mean of one - mean of the other) = |r|^2: checked on rows that were read one by one."""
    chat = tiny("llama")
    one, two = ["Tell me a joke", "Sing a song"], ["What is 1 + 1?", "Is it late?", "Who are you?"]
    means = [mean_activations(chat, prompts, n_positions=4) for prompts in (one, two)]
    r = difference_in_means(*means)[-2, 2]
    rows = [stream_at(chat, prompts, layer=2, position=-2) for prompts in (one, two)]
    gap = (rows[0] @ r).mean() - (rows[1] @ r).mean()
    assert float(gap) == pytest.approx(float(r @ r), rel=1e-10)


@settings(deadline=None)
@given(pairs)
def test_strength_one_leaves_nothing_along_r_but_the_epsilons_share(pair):
    """w' . r = (w . r) eps / (r . r + eps), exactly."""
    w, r = pair
    left = float(orthogonalize(w, r, strength=1.0) @ r)
    expected = float(w @ r) * EPSILON / (float(r @ r) + EPSILON)
    assert left == pytest.approx(expected, abs=1e-12 * max(1.0, float(w.norm() * r.norm())))


@settings(deadline=None)
@given(pairs)
def test_strength_zero_changes_nothing(pair):
    assert torch.equal(orthogonalize(*pair, strength=0.0), pair[0])


@settings(deadline=None)
@given(pairs, st.floats(-2, 2))
def test_orthogonalize_equals_the_published_formula_written_in_plain_python(pair, strength):
    w, r = (vector.tolist() for vector in pair)
    dot = sum(a * b for a, b in zip(w, r, strict=True))
    square = sum(b * b for b in r)
    expected = [a - strength * dot / (square + 1e-8) * b for a, b in zip(w, r, strict=True)]
    assert orthogonalize(*pair, strength=strength).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(pairs, st.floats(0, 1), st.floats(0, 1))
def test_more_strength_never_leaves_more_along_r(pair, one, two):
    weak, strong = sorted([one, two])
    w, r = pair
    left = [abs(float(orthogonalize(w, r, strength=strength) @ r)) for strength in (weak, strong)]
    assert left[1] <= left[0] + 1e-9 * max(1.0, float(w.norm() * r.norm()))


@settings(deadline=None)
@given(pairs, st.floats(0, 1))
def test_what_is_orthogonal_to_r_is_not_touched(pair, strength):
    w, r = pair
    across = torch.zeros_like(w)
    if len(w) > 1:
        across[0], across[1] = r[1], -r[0]
    changed = orthogonalize(w, r, strength=strength) - w
    assert float(changed @ across) == pytest.approx(0.0, abs=1e-9 * max(1.0, float(w.norm() * r.norm() ** 2)))


def test_each_position_and_layer_is_orthogonalized_by_its_own_r():
    w, r = random(3, 2, 5, seed=1), random(3, 2, 5, seed=2)
    result = orthogonalize(w, r, strength=0.7)
    for position in range(3):
        for layer in range(2):
            alone = orthogonalize(w[position, layer], r[position, layer], strength=0.7)
            assert torch.allclose(result[position, layer], alone, atol=1e-14)


def test_a_zero_r_removes_nothing_and_is_not_nan():
    w = random(6)
    assert torch.equal(orthogonalize(w, torch.zeros(6, dtype=torch.float64), strength=1.0), w)


@settings(deadline=None)
@given(pairs, st.floats(1e-3, 1e3))
def test_cosine_is_symmetric_bounded_and_free_of_scale(pair, scale):
    one, two = pair
    value = cosine(one, two)
    assert abs(value) <= 1 + 1e-12
    assert value == pytest.approx(cosine(two, one), abs=1e-12)
    if one.norm() > 1e-6 and two.norm() > 1e-6:
        assert cosine(scale * one, two) == pytest.approx(value, abs=1e-9)
        assert cosine(-one, two) == pytest.approx(-value, abs=1e-12)
        assert cosine(one, one) == pytest.approx(1.0)


def test_cosine_by_hand_and_with_a_zero_vector():
    east, north = torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 3.0]).double()
    assert cosine(east, north) == 0.0
    assert cosine(east, east + north * 2 / 3) == pytest.approx(0.5**0.5)
    assert cosine(east, torch.zeros(2).double()) == 0.0


def test_unit_and_norm():
    direction = Direction(torch.tensor([3.0, 4.0], dtype=torch.float64), -1, 2)
    assert direction.norm == 5.0
    assert direction.unit.tolist() == pytest.approx([0.6, 0.8])
    zero = Direction(torch.zeros(2, dtype=torch.float64), -1, 2)
    assert zero.unit.tolist() == [0.0, 0.0]


def test_a_round_trip_keeps_places_and_every_bit(tmp_path):
    odd = torch.tensor([1 / 3, -0.0, 1e-300, 1e300, 5e-324], dtype=torch.float64)
    written = {"refusal": Direction(random(5), -3, 11), "false-refusal": Direction(odd, -1, 0)}
    save_directions(tmp_path / "directions.safetensors", written)
    read = load_directions(tmp_path / "directions.safetensors")
    assert set(read) == set(written)
    for name, direction in written.items():
        assert (read[name].position, read[name].layer) == (direction.position, direction.layer)
        assert read[name].vector.dtype == torch.float64
        assert read[name].vector.numpy().tobytes() == direction.vector.numpy().tobytes()


def test_the_same_directions_are_the_same_bytes(tmp_path):
    """Also in another process: safetensors keeps metadata in a map whose order changes with every call."""
    directions = {f"d{i}": Direction(random(2, seed=i), -i - 1, i) for i in range(8)}
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for path, order in zip(files, (directions, dict(reversed(directions.items()))) * 4, strict=True):
        save_directions(path, order)
    assert len({path.read_bytes() for path in files}) == 1


def test_a_slice_of_a_stack_is_saved_without_the_stack(tmp_path):
    """The published code saved a view with its whole storage."""
    stack = random(5, 18, 256)
    path = tmp_path / "directions.safetensors"
    save_directions(path, {"refusal": Direction(stack[-2, 9], -2, 9), "strided": Direction(stack[0, :, 0], -5, 0)})
    assert 8 * (256 + 18) < path.stat().st_size < 8 * (256 + 18) + 500
    read = load_directions(path)
    assert torch.equal(read["refusal"].vector, stack[-2, 9])
    assert torch.equal(read["strided"].vector, stack[0, :, 0])


def test_saving_does_not_change_what_is_saved_and_leaves_one_file(tmp_path):
    direction = Direction(random(4), -1, 1)
    before = direction.vector.clone()
    for _ in range(2):
        save_directions(tmp_path / "directions.safetensors", {"refusal": direction})
    assert torch.equal(direction.vector, before)
    assert [path.name for path in tmp_path.iterdir()] == ["directions.safetensors"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def empty(path):
    path.write_bytes(b"")


def write_text(path):
    path.write_text("not a tensor file, but long enough to have a header")


def drop_metadata(path):
    save_file({"refusal": random(4)}, path)


def garble_metadata(path):
    save_file({"refusal": random(4)}, path, metadata={"refusal": "last,first"})


def halve_metadata(path):
    save_file({"refusal": random(4)}, path, metadata={"refusal": "-1"})


DAMAGES = [truncate, empty, write_text, drop_metadata, garble_metadata, halve_metadata]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    path = tmp_path / "directions.safetensors"
    save_directions(path, {"refusal": Direction(random(4), -1, 1)})
    damage(path)
    with pytest.raises(RunFolderError) as caught:
        load_directions(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read directions from {path}: ")
    assert message.endswith("Run the `demur calibrate` command of this folder again.")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"cannot read directions from .*nothing\.safetensors"):
        load_directions(tmp_path / "nothing.safetensors")
