"""Signals that stop a run between two batches, with a checkpoint."""

import signal
import threading
from dataclasses import replace

import pytest
from tools import (
    CPU,
    assert_same_history,
    assert_same_weights,
    in_batch,
    load_state,
    press_ctrl_c,
    require_main_thread,
    shapes_dataset,
    small_net,
)

from helpers.training import TrainConfig, fit

SMALL = TrainConfig(epochs=4, batch_size=5, image_sizes=(16, 16, 24), seed=3)


@pytest.fixture
def data():
    return shapes_dataset(13)  # the last of three batches of 5 is smaller


@pytest.mark.parametrize(
    "batch", [2, 6, 7], ids=["within an epoch", "in its last batch", "in the first of the next"]
)
def test_ctrl_c_ends_after_the_batch_and_the_run_goes_on_to_the_same_bits(data, tmp_path, batch):
    config, path = replace(SMALL, ema=0.9), tmp_path / "run.pt"
    whole, stopped = small_net(), small_net()
    expected = fit(whole, data, None, config, CPU)
    stopped.register_forward_pre_hook(in_batch(batch, press_ctrl_c))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"saved in .*run\.pt: run this again") as caught:
        fit(stopped, data, None, config, CPU, path)
    assert signal.getsignal(signal.SIGINT) is before
    epochs, step = divmod(batch, 3) if batch % 3 else (batch // 3 - 1, 3)
    assert f"stopped after {epochs} epochs and {step} batches, " in str(caught.value)
    saved = load_state(path)
    assert (len(saved["history"]), saved["step"]) == (epochs, step)
    history = fit(small_net(seed=99), data, None, config, CPU, path)
    again = small_net(seed=98)  # a finished run loads its result
    assert fit(again, data, None, config, CPU, path).equals(history)
    assert_same_weights(whole, again)
    assert_same_history(history, expected)


def test_ctrl_c_without_a_checkpoint_says_that_nothing_is_saved(data):
    model = small_net()
    model.register_forward_pre_hook(in_batch(1, press_ctrl_c))
    with pytest.raises(KeyboardInterrupt, match="nothing is saved: give a checkpoint"):
        fit(model, data, None, SMALL, CPU)


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_network_whose_training_was_stopped_is_known_until_it_is_trained(data, error):
    def stop(row):
        raise error

    model = small_net()
    with pytest.raises(error):
        fit(model, data, None, SMALL, CPU, log=stop)
    assert model.unfinished
    fit(model, data, None, SMALL, CPU)
    assert not model.unfinished


def test_network_whose_checkpoint_was_refused_is_known_as_untrained(data, tmp_path):
    fit(small_net(), data, None, replace(SMALL, epochs=1), CPU, tmp_path / "run.pt")
    model = small_net()
    with pytest.raises(ValueError, match="is from another run"):
        fit(model, data, None, SMALL, CPU, tmp_path / "run.pt")
    assert model.unfinished


def test_second_ctrl_c_interrupts_at_once(data, tmp_path):
    model = small_net()
    for _ in range(2):
        model.register_forward_pre_hook(in_batch(1, press_ctrl_c))
    model.register_forward_hook(lambda *_: pytest.fail("it went on"))
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, data, None, SMALL, CPU, tmp_path / "run.pt")
    assert not str(caught.value) and not (tmp_path / "run.pt").exists()


def test_ctrl_c_while_an_epoch_is_scored_or_logged_ends_after_it(data, tmp_path):
    logged = []
    with pytest.raises(KeyboardInterrupt, match="stopped after 1 epochs and 0 batches"):
        log = lambda row: logged.append(row) or press_ctrl_c()  # noqa: E731
        fit(small_net(), data, None, SMALL, CPU, tmp_path / "run.pt", log=log)
    assert len(logged) == 1 and len(load_state(tmp_path / "run.pt")["history"]) == 1
    assert not (tmp_path / "run.pt.previous").exists()  # it was not written twice


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_the_process_after_the_batch_with_a_checkpoint(
    data, tmp_path, capsys, name
):
    if not hasattr(signal, name):
        pytest.skip("Windows has no such signal")
    require_main_thread()
    number, model, path = getattr(signal, name), small_net(), tmp_path / "run.pt"
    for _ in range(2):  # a closed terminal may send two
        model.register_forward_pre_hook(lambda *_: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        fit(model, data, None, SMALL, CPU, path)
    assert ended.value.code == 128 + number and signal.getsignal(number) is before
    expected = f"stopped after 0 epochs and 1 batches, saved in {path}: run this again to go on\n"
    assert capsys.readouterr().err.endswith(expected)
    assert load_state(path)["step"] == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_signal_that_is_ignored_stays_so_as_under_nohup(data):
    require_main_thread()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        model = small_net()
        model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGHUP))
        assert len(fit(model, data, None, replace(SMALL, epochs=1), CPU)) == 1
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_system_without_sighup_as_windows_is_stops_at_the_others(data, monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    test_ctrl_c_without_a_checkpoint_says_that_nothing_is_saved(data)


def test_training_in_another_thread_leaves_signals_alone(data):
    seen, ended, before = [], [], signal.getsignal(signal.SIGINT)
    model = small_net()
    model.register_forward_pre_hook(lambda *_: seen.append(signal.getsignal(signal.SIGINT)))

    def train():
        ended.append(fit(model, data, None, replace(SMALL, epochs=1), CPU))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(ended[0]) == 1 and set(seen) == {before}
