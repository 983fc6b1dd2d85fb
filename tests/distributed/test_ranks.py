# SPDX-License-Identifier: Apache-2.0

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import launch

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import training_indices
from hmsa.distributed import ranks
from hmsa.errors import UsageError


@settings(deadline=None)
@given(
    fine=st.integers(1, 20),
    coarse=st.integers(1, 20),
    multiple=st.sampled_from([0, 0.5, 1, 1.7]),
    batch=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    world=st.sampled_from([1, 2, 4]),
)
def test_every_number_of_ranks_sees_every_epoch_whole(fine, coarse, multiple, batch, accumulation, world):
    """Also where a step takes the end of one epoch and the beginning of the next, on different ranks."""
    dataset = SegmentationDataset(
        pairs=[(f"fine {i}", None) for i in range(fine)],
        coarse_pairs=[(f"coarse {i}", None) for i in range(coarse)],
        coarse_multiple=multiple,
        classes=Classes.numbered(2),
        training=True,
    )
    epochs = 3
    iterations = -(-epochs * len(dataset) // (batch * accumulation * world)) + 1
    seen = [Counter() for _ in range(epochs)]
    for rank in range(world):
        for micro_batch in training_indices(
            first_iteration=0,
            iterations=iterations,
            batch_size=batch,
            rank=rank,
            world_size=world,
            accumulation=accumulation,
        ):
            for epoch, position in (divmod(index, len(dataset)) for index in micro_batch):
                if epoch < epochs:
                    seen[epoch][dataset.epoch(epoch)[position]] += 1
    assert seen == [Counter(dataset.epoch(epoch)) for epoch in range(epochs)]
    fine_pictures = {pair for pair in seen[0] if pair[0].startswith("fine")}
    assert len(fine_pictures) == fine
    assert all(seen[0][pair] == 1 for pair in fine_pictures)


@pytest.fixture
def join(monkeypatch):
    """environment of the launcher -> what the lifeline is made with."""
    for name in ("PADDLE_LOCAL_SIZE", "PADDLE_MASTER", "HMSA_JOB_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "_lifeline", None)

    def join(**environment):
        made = []
        monkeypatch.setattr(ranks, "Lifeline", lambda **options: made.append(options))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ranks.join()
        return made[0]

    return join


FOUR = {
    "PADDLE_TRAINERS_NUM": "4",
    "PADDLE_TRAINER_ID": "3",
    "PADDLE_TRAINER_ENDPOINTS": "10.0.0.1:6071,10.0.0.1:6073,10.0.0.2:6071,10.0.0.2:6072",
}


@pytest.mark.parametrize(
    ("master", "port"),
    [("10.0.0.1:40000", 6071), ("10.0.0.1:6071", 6072)],  # of Paddle's choice; with --ips, the first endpoint
)
def test_the_lifeline_has_a_port_of_its_own(join, master, port):
    options = join(**FOUR, PADDLE_MASTER=master)
    assert (options["rank"], options["world_size"], options["address"]) == (3, 4, ("10.0.0.1", port))


@pytest.mark.parametrize(
    ("here", "endpoint", "host"),
    [("2", "10.0.0.1:6071", "10.0.0.1"), ("2", "[fd00::1]:6071", "fd00::1"), ("4", "10.0.0.1:6071", "127.0.0.1")],
)
def test_ranks_of_one_machine_cannot_be_reached_from_another(join, here, endpoint, host):
    endpoints = ",".join([endpoint] * 4)
    options = join(**{**FOUR, "PADDLE_TRAINER_ENDPOINTS": endpoints}, PADDLE_LOCAL_SIZE=here)
    assert options["address"] == (host, 6071)


def test_the_key_of_the_job_is_part_of_the_secret(join):
    without = join(**FOUR)["secret"]
    assert join(HMSA_JOB_KEY="k3y")["secret"] == "k3y" + without


def test_one_process_needs_no_lifeline(monkeypatch):
    monkeypatch.setattr(ranks, "_lifeline", None)
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    ranks.join()
    assert ranks._lifeline is None


def test_what_the_main_process_decides_or_refuses():
    """Alone; for several see distributed/."""
    assert ranks.decided_by_main(lambda: 3) == 3

    def refuse():
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        ranks.decided_by_main(refuse)


@pytest.mark.slow
def test_a_machine_without_a_gpu_needs_no_unset_variable(tmp_path):
    """The launcher takes CUDA_VISIBLE_DEVICES for GPUs, and tells Paddle of no other way for processes to talk."""
    script = tmp_path / "say.py"
    script.write_text("from hmsa.distributed import ranks; ranks.init(); print(ranks.all_gather(ranks.rank()))")
    said = launch(tmp_path / "job", script, processes=2, environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert "[0, 1]" in said
