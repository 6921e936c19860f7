# SPDX-License-Identifier: Apache-2.0
"""What paths and arguments say of containers, layers and processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import DATA, EXEC, container_id, identity, layer

from observe.correlate.identity import Identities
from observe.correlate.names import DRIVERS, container_in, layer_in, process_in

ID, LAYER = container_id(1), layer(1)


@pytest.mark.parametrize(
    "text",
    [
        f"{DATA}/containers/{ID}",
        f"{DATA}/containers/{ID}/hosts",
        f"{DATA}/image/overlay2/layerdb/mounts/{ID}/init-id",
        f"{EXEC}/containerd/daemon/io.containerd.runtime.v2.task/moby/{ID}/rootfs",
        f"runc\0--log\0{EXEC}/moby/{ID}/log.json\0create\0--bundle\0{EXEC}/moby/{ID}",
        f"libnetwork-setkey\0-exec-root={EXEC}\0{ID}\x000123456789ab",
        f"/sys/fs/cgroup/system.slice/docker-{ID}.scope",
        f"{DATA}/containers/{ID}/{container_id(2)}.json",  # the first one is meant
    ],
)
def test_a_container_is_found_in_what_its_start_names(text):
    assert container_in(text) == ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        ID,  # a relative name: as likely a layer's
        f"{DATA}/containers/{ID[:63]}",
        f"{DATA}/containers/{ID}0",
        f"{DATA}/containers/{ID.upper()}",
        f"{DATA}/image/overlay2/imagedb/content/sha256/{ID}",
        f"sha256:{ID}",
        f"runc\0sha256:{ID}",
        f"/run/containerd/s/{ID}",
        f"{DATA}/overlay2/{ID}/merged",
        f"{DATA}/vfs/dir/{ID}",
        f"{DATA}/fuse-overlayfs/{ID}",
        f"{DATA}/volumes/{ID}/_data",  # an anonymous volume
        f"{DATA}/plugins/{ID}/config.json",
        f"{DATA}/containerd/daemon/io.containerd.content.v1.content/ingest/{ID}/data",
    ],
)
def test_what_only_looks_like_a_container_is_none(text):
    assert container_in(text) is None


def test_a_volume_before_a_container_does_not_hide_it():
    assert container_in(f"mount\0{DATA}/volumes/{container_id(9)}/_data\0{DATA}/containers/{ID}") == ID


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("rest", ["", "-init", "/merged", "-init/diff/etc"])
def test_a_layer_is_found_below_every_driver(driver, rest):
    assert layer_in(f"{DATA}/{driver}/{LAYER}{rest}") == LAYER


@pytest.mark.parametrize("layer_name", ["v3cr6iow8pq01znjzs7v3yw2a", LAYER])
def test_a_layer_has_either_kind_of_name(layer_name):
    assert layer_in(f"{DATA}/overlay2/{layer_name}/work/work") == layer_name


@pytest.mark.parametrize(
    "text",
    [f"{DATA}/overlay2/l/GRIVPJLK7YAT3OXDTS4V2QFCUA", f"{DATA}/other/{LAYER}", f"{DATA}/overlay2/{LAYER}x0", DATA, ""],
)
def test_what_only_looks_like_a_layer_is_none(text):
    assert layer_in(text) is None


@pytest.mark.parametrize(
    ("text", "pid"),
    [
        ("/proc/123/ns/net", 123),
        ("/proc/123/task/124/ns/net", 123),
        ("/proc/self/ns/net", None),
        ("/proc/123/cmdline", None),
        ("/x/proc/123/ns/net", None),
    ],
)
def test_a_namespace_file_names_its_process(text, pid):
    assert process_in(text) == pid


@given(st.text(alphabet="0123456789abcdef/x\0:", max_size=200))
def test_whatever_is_found_is_in_the_text_and_whole(text):
    found = container_in(text)
    if found is not None:
        assert len(found) == 64
        at = text.index(found)
        assert at > 0
        assert not text[at - 1].isalnum()


# --- who is who -------------------------------------------------------------------------------------------------------


def known(*notes):
    identities = Identities()
    for note in notes:
        identities.learn(note.data)
    return identities


@pytest.mark.parametrize("reference", [ID, "web", ID[:12], ID[:30]])
def test_a_container_is_found_by_id_name_and_short_id(reference):
    assert known(identity(1, 0, "web"), identity(2, 0, "db")).by_reference(reference) == ID


@pytest.mark.parametrize("reference", ["", "we", ID[:11], ID[1:13], "nobody", ID[:-1] + "x"])
def test_a_container_is_not_found_by_less(reference):
    assert known(identity(1, 0, "web"), identity(2, 0)).by_reference(reference) is None


def test_a_short_id_that_two_containers_have_finds_neither():
    twin = ID[:20] + "0" * 44
    assert known(identity(1, 0, "a"), identity(2, 0, "b", id=twin)).by_reference(ID[:12]) is None


def test_a_name_comes_before_a_short_id_as_in_dockerd():
    identities = known(identity(1, 0, "a"), identity(2, 0, ID[:12]))
    assert identities.by_reference(ID[:12]) == container_id(2)


def test_a_name_that_is_used_again_is_the_new_containers():
    assert known(identity(1, 0, "web"), identity(2, 0, "web")).by_reference("web") == container_id(2)


def test_a_layer_tells_its_container():
    identities = known(identity(1, 0), identity(2, 0))
    assert [identities.by_layer(layer(n)) for n in (1, 2, 3)] == [ID, container_id(2), None]


def test_what_a_newer_note_adds_is_ignored():
    identities = Identities()
    identities.learn({"id": ID, "name": "web", "colour": "blue"})
    assert identities.get(ID).name == "web"
    assert identities.get(None) is None


def test_only_so_many_containers_are_remembered():
    identities = Identities(3)
    for n in range(10):
        identities.learn(identity(n, 0, f"c{n}").data)
    assert [n for n in range(10) if identities.get(container_id(n))] == [7, 8, 9]
    assert [n for n in range(10) if identities.by_reference(f"c{n}")] == [7, 8, 9]
    assert [n for n in range(10) if identities.by_layer(layer(n))] == [7, 8, 9]
