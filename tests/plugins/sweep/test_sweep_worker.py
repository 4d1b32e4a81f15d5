"""Workers of a study: what is drawn, told, taken over, pruned; who holds what."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from dreambooth.errors import Interrupted, JobError, RunError
from dreambooth_plugins.sweep import results, trials
from dreambooth_plugins.sweep import worker as worker_module
from dreambooth_plugins.sweep.folder import open_study


def states(worker):
    return [trials.state_of(a) for _, a in sorted(worker.newest().items())]


def rates(fake_run):
    return [job.optimizer.lr for job in fake_run.runs]


def test_a_study_runs_its_trials_and_writes_the_best_as_a_job(worker, fake_run):
    from dreambooth.api import load

    one = worker(trials=4)
    one.work()
    assert states(one) == ["done"] * 4
    assert [job.name for job in fake_run.runs] == [f"trial-000{i}" for i in range(4)]
    assert {job.folder.parent for job in fake_run.runs} == {one.folder.trials}
    said = results.write(one.folder, one.sweep, one.newest())
    best = min(range(4), key=lambda i: rates(fake_run)[i])
    assert said["best"] == [best]
    job = load(one.folder.best / "job.yaml")
    assert job.optimizer.lr == rates(fake_run)[best]
    assert job.output == one.sweep.job.output
    assert job.model_copy(update={"name": "a", "optimizer": None}) == one.sweep.job.model_copy(
        update={"name": "a", "optimizer": None}
    )


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_what_is_drawn_depends_on_the_number_and_not_on_who_draws(worker, fake_run, search):
    keys = {"search": {"kind": search, "startup": 2}, "trials": 4}
    worker(name="alone", **keys).work()
    alone = rates(fake_run)
    fake_run.runs.clear()
    for _ in range(4):  # a new worker for each trial
        one = worker(name="changing", **keys)
        fake_run.begun = lambda job, one=one: setattr(one, "_left", lambda: False)
        one.work()
    assert rates(fake_run) == alone
    assert len(set(alone)) == 4


def test_a_grid_has_every_point_once_whoever_draws(worker, fake_run):
    space = {"optimizer.lr": [1e-3, 1e-2], "train.batch_size": {"low": 1, "high": 3}}
    keys = {"space": space, "search": "grid", "trials": None}
    for _ in range(2):
        one = worker(**keys)
        fake_run.begun = lambda job, one=one: setattr(
            one, "_left", lambda: len(fake_run.runs) % 3 != 0
        )
        one.work()
    points = [(job.optimizer.lr, job.train.batch_size) for job in fake_run.runs]
    assert points == [(lr, size) for lr in (1e-3, 1e-2) for size in (1, 2, 3)]
    assert states(one) == ["done"] * 6


def test_choices_may_be_whole_parts_of_a_job(worker, fake_run):
    space = {
        "freezing": ["cross_attention", {"kind": "adapter", "method": {"kind": "lora", "rank": 2}}]
    }
    fake_run.loss = lambda job, step: 1.0
    one = worker(space=space, search="grid", trials=None)
    one.work()
    assert [job.freezing.kind for job in fake_run.runs] == ["cross_attention", "adapter"]
    assert fake_run.runs[1].freezing.method.rank == 2
    table = results.rows(one.sweep.space, one.newest())
    assert table[1]["params"] == {"freezing": space["freezing"][1]}


def test_a_failed_trial_keeps_its_error_and_the_others_go_on(worker, fake_run):
    def loss(job, step):
        if job.name == "trial-0001":
            raise RunError("the loss is not finite", "lower the rate")
        return 1.0

    fake_run.loss = loss
    one = worker()
    one.work()
    assert states(one) == ["done", "failed", "done"]
    said = results.write(one.folder, one.sweep, one.newest())
    assert said["trials"][1]["error"] == "the loss is not finite"
    assert said["best"] == [0]
    assert any("failed   trial-0001" in line for line in results.lines(one.folder, said))
    fake_run.runs.clear()
    worker().work()  # the same command: nothing is left
    assert fake_run.runs == []


def test_three_failures_in_a_row_end_the_worker(worker, fake_run):
    def loss(job, step):
        raise RunError("no room left on the disk")

    fake_run.loss = loss
    with pytest.raises(RunError, match="3 trials in a row failed; the last: no room left"):
        worker(trials=9).work()
    assert len(fake_run.runs) == 3


def test_an_interrupted_trial_is_waiting_and_the_same_command_goes_on_with_it(worker, fake_run):
    def stopped(job):
        raise Interrupted("stopped by SIGINT at step 1", "again", 2)

    one = worker(retries=0)
    fake_run.begun = stopped
    with pytest.raises(Interrupted):
        one.work()
    assert states(one) == ["waiting"]
    fake_run.begun = None
    two = worker(retries=0)  # an interrupt costs no retry
    two.work()
    assert states(two) == ["done"] * 3
    assert [job.name for job in fake_run.runs] == [
        "trial-0000", "trial-0000", "trial-0001", "trial-0002",
    ]  # fmt: skip
    assert fake_run.runs[0] == fake_run.runs[1]


def begun(one):
    """Begin a trial as a worker that is gone the next moment: running, nobody holds its claim."""
    space = {d.key: d.distribution() for d in one.sweep.space}
    return one.study.ask(space).number


def test_a_trial_without_its_worker_is_taken_over_with_the_same_values(worker, fake_run):
    one = worker()
    lost = begun(one)
    rate = one.attempts()[lost].params["optimizer.lr"]
    one.work()
    assert states(one) == ["done"] * 3
    again = [job for job in fake_run.runs if job.name == "trial-0000"]
    assert [job.optimizer.lr for job in again] == [rate]
    table = results.rows(one.sweep.space, one.newest())
    assert [row["workers_lost"] for row in table] == [1, 0, 0]


def test_a_trial_that_ends_its_workers_fails_in_the_end(worker, fake_run, monkeypatch):
    one = worker(trials=1, retries=2)
    monkeypatch.setattr(worker_module, "POLL", 0.0)
    begun(one)
    for _ in range(2):
        one.recover()
        assert states(one) == ["waiting"]
        begun(one)
    one.work()
    assert states(one) == ["failed"]
    assert fake_run.runs == []
    table = results.rows(one.sweep.space, one.newest())
    assert table[0]["error"] == "3 workers ended while they ran it"


def test_a_trial_that_is_worked_on_is_never_taken(worker, fake_run):
    one, two = worker(), worker()

    def look(job):
        two.recover()
        assert states(two)[int(job.name[-1])] == "running"

    fake_run.begun = look
    one.work()
    assert states(one) == ["done"] * 3
    assert len(one.attempts()) == 3


def test_a_worker_that_lost_its_trial_tells_nothing_and_leaves_it(worker, fake_run):
    one = worker(trials=1)

    def taken(job):
        if len(fake_run.runs) == 1:  # as a database does where no sign of life came
            one.study.tell(0, state=worker_module._state("FAIL"))

    fake_run.begun = taken
    one.work()
    assert [a.state.name for a in one.attempts()] == ["FAIL", "COMPLETE"]
    assert states(one) == ["done"]
    assert any("leaves the trial to others" in line for line in one.reporter.lines)


def test_two_that_ask_for_the_last_trial_at_once_run_it_once(worker, fake_run):
    one, two = worker(trials=2), worker(trials=2)
    real = one._is_work

    def late():
        answer = real()
        two.looks += len(fake_run.runs) == 1
        if two.looks == 2 and len(fake_run.runs) == 1:  # one is about to ask
            assert answer
            with ExitStack() as claimed:
                two._run(*two._take(claimed))
        return answer

    two.looks = 0
    one._is_work = late
    one.work()
    assert states(one) == ["done"] * 2
    assert len(fake_run.runs) == 2
    assert len(one.attempts()) == 3  # the one too many has no outcome and is not counted


def test_bad_trials_are_pruned_by_the_metric_at_each_evaluation(worker, fake_run):
    fake_run.loss = lambda job, step: (1.0 if job.name != "trial-0002" else 9.0) + step
    one = worker(trials=4, pruner={"kind": "median", "startup": 2})
    one.work()
    assert states(one) == ["done", "done", "pruned", "done"]
    assert one.newest()[2].intermediate_values == {1: 10.0}
    assert any("pruned: validation/loss 10 at step 1" in line for line in one.reporter.lines)


def test_two_objectives_give_the_front(worker, fake_run, monkeypatch):
    from dreambooth import api

    pairs = [(1.0, 1.0), (2.0, 3.0), (1.5, 0.5), (2.0, 3.0)]

    def run(job, *, reporter):
        a, b = pairs[int(job.name[-1])]
        return type("R", (), {"scalars": {"validation/loss": a, "train/loss": b}})()

    monkeypatch.setattr(api, "run", run)
    goal = ["validation/loss", {"metric": "train/loss", "mode": "max"}]
    one = worker(objective=goal, trials=4, search="tpe")
    one.work()
    said = results.write(one.folder, one.sweep, one.newest())
    assert said["best"] == [0, 1, 3]
    names = sorted(p.name for p in one.folder.best.iterdir())
    assert names == ["trial-0000.yaml", "trial-0001.yaml", "trial-0003.yaml"]


def test_another_sweep_of_that_name_is_refused_and_more_trials_are_not(worker, fake_run):
    worker(trials=1).work()
    with pytest.raises(JobError, match="begun by another sweep: space changed"):
        worker(space={"optimizer.lr": [1e-3]})
    two = worker(trials=2)
    two.work()
    assert [job.name for job in fake_run.runs] == ["trial-0000", "trial-0001"]


def test_a_worker_needs_the_folder_alone(worker, fake_run, tmp_path):
    one = worker(trials=2)
    Path(tmp_path / "job.yaml").unlink()
    Path(tmp_path / "sweep.yaml").unlink()
    folder, sweep = open_study(one.folder.path)
    assert sweep.space == one.sweep.space
    two = worker_module.Worker(folder, sweep, one.reporter, sweep.file.storage)
    two.work()
    assert states(one) == ["done"] * 2


def test_the_commands_train_resume_and_answer_in_json(dbt, sweep_file, tmp_path):
    path = sweep_file(trials=1)
    done = dbt("sweep", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [row["state"] for row in said["trials"]] == ["done"]
    study = tmp_path / "sweeps/study"
    run = study / "trials/trial-0000"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row["validation/loss"] for row in logged if "validation/loss" in row][-1]
    assert said["trials"][0]["values"] == [last]
    again = dbt("work", study, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "(1 done)" in again.stdout
    assert "best/job.yaml" in again.stdout
    checked = dbt("validate", study / "best/job.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
