from itertools import pairwise
from types import SimpleNamespace

import pytest

from demur.errors import InputError
from demur.models import DriftWarning, Measured, MeasuringCallback, TimeShare


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def training(callback, clock, *, steps, step_seconds):
    """What Trainer calls, with a clock that each step moves on; stops when it is told to."""
    state = SimpleNamespace(global_step=0, epoch=0.0, is_world_process_zero=True, log_history=[])
    control = SimpleNamespace(should_training_stop=False)
    callback.on_train_begin(None, state, control)
    for step in range(1, steps + 1):
        clock.now += step_seconds
        state.global_step = step
        callback.on_step_end(None, state, control)
        if control.should_training_stop:
            break
    return state


def measuring(clock, cost, *, alarm_from=None):
    """A measurement that takes `cost` seconds (a number, or a function of its number)."""
    steps = []

    def measure(step):
        clock.now += cost(len(steps)) if callable(cost) else cost
        steps.append(step)
        alarm = None if alarm_from is None or step < alarm_from else "it is gone"
        return Measured({"drift/x": float(step)}, alarm)

    return measure, steps


def quiet(clock, cost, **more):
    measure, steps = measuring(clock, cost)
    return MeasuringCallback(measure, clock=clock, **more), steps


@pytest.mark.parametrize("cost", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_measuring_takes_its_share_of_the_time_and_no_more(cost, share):
    clock = Clock()
    callback, steps = quiet(clock, cost, share=share)
    training(callback, clock, steps=2000, step_seconds=0.2)
    assert callback.account.taken <= share
    # ... and not much less: there was no room for two more
    assert (len(steps) + 2) * cost > share * (clock.now - 100.0)
    assert callback.account.spent == pytest.approx(len(steps) * cost)


def test_measurements_are_spread_evenly():
    clock = Clock()
    callback, steps = quiet(clock, 1.0)
    training(callback, clock, steps=1000, step_seconds=1.0)
    # The first one is paid for, and the next one, at 2 seconds of 100; then one for every 50 seconds.
    assert steps[0] == 0
    assert steps[1] == 99
    gaps = [two - one for one, two in pairwise(steps[1:])]
    assert set(gaps) <= {48, 49, 50}


def test_the_interval_grows_with_the_cost():
    clock = Clock()
    callback, steps = quiet(clock, lambda number: 0.1 if number < 3 else 1.0, share=0.1)
    training(callback, clock, steps=600, step_seconds=0.1)
    assert callback.account.taken <= 0.1
    assert steps[3] - steps[2] < 20
    assert steps[-1] - steps[-2] > 80


def test_a_cost_that_jumped_is_paid_back_before_the_next_one():
    clock = Clock()
    callback, steps = quiet(clock, lambda number: 5.0 if number == 1 else 0.1, share=0.1)
    state = training(callback, clock, steps=3000, step_seconds=0.1)
    over = [entry for entry in state.log_history if entry["drift/time_share"] > 0.1]
    assert len(over) <= 2  # the first one, which comes before any training, and the jump itself
    assert callback.account.taken <= 0.1
    assert len(steps) > 50


def test_a_fixed_interval_is_kept_whatever_it_costs():
    clock = Clock()
    callback, steps = quiet(clock, 50.0, every=4)
    training(callback, clock, steps=11, step_seconds=0.1)
    assert steps == [0, 4, 8]


def test_values_go_into_the_trainers_log():
    clock = Clock()
    callback, _ = quiet(clock, 1.0, every=1)
    state = training(callback, clock, steps=2, step_seconds=9.0)
    assert [(entry["step"], entry["drift/x"]) for entry in state.log_history] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert state.log_history[-1]["drift/time_share"] == pytest.approx(3 / 21)


def test_values_go_to_the_loggers_that_are_set():
    clock, seen = Clock(), []
    callback, _ = quiet(clock, 1.0, every=1)
    callback.log = seen.append
    state = training(callback, clock, steps=1, step_seconds=1.0)
    assert [entry["drift/x"] for entry in seen] == [0.0, 1.0]
    assert state.log_history == []


def test_an_alarm_is_warned_of_once_and_stops_only_on_demand():
    clock = Clock()
    measure, steps = measuring(clock, 0.1, alarm_from=3)
    with pytest.warns(DriftWarning) as caught:
        training(MeasuringCallback(measure, every=1, clock=clock), clock, steps=6, step_seconds=1.0)
    assert [str(each.message) for each in caught] == ["step 3: it is gone"]
    assert steps[-1] == 6
    measure, steps = measuring(clock, 0.1, alarm_from=3)
    with pytest.warns(DriftWarning):
        training(MeasuringCallback(measure, every=1, stop=True, clock=clock), clock, steps=6, step_seconds=1.0)
    assert steps[-1] == 3


def test_only_the_first_process_measures():
    clock = Clock()
    callback, steps = quiet(clock, 1.0, every=1)
    state = SimpleNamespace(global_step=0, epoch=0.0, is_world_process_zero=False, log_history=[])
    callback.on_train_begin(None, state, None)
    callback.on_step_end(None, state, None)
    assert steps == []


def test_a_measurement_that_fails_is_on_the_account():
    clock = Clock()
    account = TimeShare(0.5, clock)

    def fail():
        clock.now += 4.0
        raise ValueError

    with pytest.raises(ValueError):
        account.charge(fail)
    assert account.spent == 4.0


@pytest.mark.parametrize("share", [0.0, -1.0, 2.0])
def test_a_share_that_means_nothing_is_refused(share):
    with pytest.raises(InputError, match=r"between 0 and 1, such as 0\.02"):
        TimeShare(share)


def test_an_interval_that_means_nothing_is_refused():
    with pytest.raises(InputError, match="every is a number of training steps of at least 1; got 0"):
        MeasuringCallback(lambda _: Measured({}), every=0)
