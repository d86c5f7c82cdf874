"""A run on a Ray cluster: the files of one process, byte for byte, also when a machine is lost on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from densevl.errors import DensevlError, OutputError
from densevl.images import find_images
from densevl.pipelines.folder.cluster import Cluster
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import Segmenting
from densevl.pipelines.folder.watch import Job, Watch
from densevl.vocabulary import LabelSet
from tools.bench_folder import content, make_images

pytest.importorskip("ray.data")
WORK = Segmenting(LabelSet.parse("penguin, elephant"), {"model": "mini", "device": "cpu"})


@pytest.fixture
def two_nodes(monkeypatch):
    """A Ray cluster of two local nodes with one CPU each, and the second of them."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    # A node that is gone refuses to be asked: it is found out sooner; one that is busy is still waited for.
    soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500}
    head = {**node, "include_dashboard": False, "_system_config": soon}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    try:
        second = nodes.add_node(**node)
        nodes.wait_for_nodes()
        yield nodes, second
    finally:
        ray.shutdown()
        nodes.shutdown()


class Losing(Watch):
    """Takes a node away when the first image is done, and counts how often each is told of."""

    def __init__(self, nodes, node) -> None:
        self.nodes, self.node, self.told = nodes, node, list[str]()

    def done(self, job: Job, result, content) -> None:
        self.told.append(job.image)
        if self.node is not None:
            node, self.node = self.node, None
            self.nodes.remove_node(node, allow_graceful=False)

    def failed(self, job: Job, error: str) -> None:
        self.told.append(job.image)


@pytest.mark.timeout(600)
def test_a_lost_machine_leaves_every_image_done_once_and_the_bytes_of_one_process(tmp_path, two_nodes) -> None:
    make_images(tmp_path / "photos", 24, 2)
    found = find_images(tmp_path / "photos")
    alone = to_files(WORK.task(), found, tmp_path / "one")
    nodes, second = two_nodes
    watch = Losing(nodes, second)
    # Each worker takes a CPU and each node has one, so two workers are on two nodes.
    cluster = Cluster(WORK, nodes.address, workers=2, shard=2, threads=1)
    report = to_files(WORK.task(), found, tmp_path / "two", watch=watch, cluster=cluster)
    assert watch.node is None, "a node was taken away"
    assert sorted(watch.told) == sorted(found.paths)
    assert (report.done, report.errors) == (alone.done, alone.errors)
    assert content(tmp_path / "two") == content(tmp_path / "one")

    (tmp_path / "two" / "00" / "00001.png").unlink()  # as if the run had been killed
    again = Losing(nodes, None)
    to_files(WORK.task(), found, tmp_path / "two", watch=again, cluster=replace(cluster, workers=1))
    assert len(again.told) == 3, "one image, and the bad ones, are told of"
    assert content(tmp_path / "two") == content(tmp_path / "one")

    packs = replace(cluster, workers=1, shard=64)
    for where, by in (("here", None), ("there", packs)):
        to_files(WORK.task(), found, tmp_path / where / "results.tar", cluster=by)
    assert content(tmp_path / "here") == content(tmp_path / "there")
    other = replace(WORK, labels=LabelSet.parse("house"))
    with pytest.raises(OutputError, match="labels"):
        to_files(other.task(), found, tmp_path / "two", cluster=cluster)
    with pytest.raises(DensevlError, match=r"a worker would give other results.*labels"):
        to_files(other.task(), found, tmp_path / "other", cluster=replace(cluster, workers=1))
    assert json.loads((Path(tmp_path) / "one" / "densevl.json").read_text())["facts"]["use"] == "segment"
