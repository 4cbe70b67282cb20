"""Processes on CPUs share PyTorch's threads."""

import pytest
import torch

pytestmark = pytest.mark.detectron2


@pytest.fixture
def eight_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("processes", "expected"), [(2, 4), (3, 2), (16, 1)])
def test_each_process_gets_an_equal_part_of_the_threads(
    eight_threads, monkeypatch, processes, expected
):
    from hypernet_d2.engine.launch import run_with_shared_threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []
    run_with_shared_threads(processes, lambda x: seen.append((x, torch.get_num_threads())), ("x",))
    assert seen == [("x", expected)]


def test_the_users_own_number_of_threads_is_kept(eight_threads, monkeypatch):
    from hypernet_d2.engine.launch import run_with_shared_threads

    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    run_with_shared_threads(2, lambda: None, ())
    assert torch.get_num_threads() == 8
