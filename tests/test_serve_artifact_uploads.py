"""Artifacts over the wire: clients that lie, stop half way, hurry or work together, and a server that is killed."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from artifact_wire import (
    COMMIT,
    COMPLETE,
    CREATE,
    ENTRIES,
    FILES,
    MANIFEST,
    UPDATE_MANIFEST,
    Logging,
    ask,
    digest,
    entries,
    fetched,
    manifest,
    md5,
    put,
    refused,
    versions,
)
from serving import Server, serving

from mirror.store import Reader

FILES_OF_ONE = {"a.txt": b"a", "dir/ü & #?.bin": bytes(range(256)), "empty": b"", "same.txt": b"a"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("artifacts") / "mirror") as found:
        found.upsert("p", "r")
        yield found


def test_what_was_logged_is_what_is_served_and_stored(server: Server) -> None:
    logging = Logging(server, "plain", FILES_OF_ONE, runName="r", metadata='{"a": NaN}')
    first = logging.all()
    assert (first["state"], first["versionIndex"], first["digest"]) == ("COMMITTED", 0, digest(logging.entries))
    [version] = versions(server, "plain")
    assert version["size"] == sum(map(len, FILES_OF_ONE.values())) and version["fileCount"] == len(FILES_OF_ONE)
    assert [a["alias"] for a in version["aliases"]] == ["latest", "v0"]
    assert fetched(server, first["id"]) == FILES_OF_ONE
    [url] = re.findall(
        r"http\S+", server.graphql(ENTRIES, id=first["id"])["artifact"]["currentManifest"]["file"]["directUrl"]
    )
    assert requests.get(url, timeout=300).content == manifest(logging.entries)
    # The address that the SDK makes up itself needs a key.
    by_key = entries(server, first["id"])["a.txt"]["url"]
    assert requests.get(by_key, timeout=300).status_code == 401
    assert requests.get(by_key, auth=("api", server.key), timeout=300).content == b"a"
    older = f"{server.url}/artifacts/local/{hashlib.md5(b'a').hexdigest()}"  # the address of manifests of layout V1
    assert requests.get(older, auth=("api", server.key), timeout=300).content == b"a"
    with serving(server.root, "--read-only", key=server.key) as other:
        assert fetched(other, first["id"]) == FILES_OF_ONE and len(versions(other, "plain")) == 1
        assert "read-only" in ask(other, COMMIT, id=first["id"])["errors"][0]["message"]
    with Reader(server.root) as reader:
        held = reader.connect().execute(
            "select path, digest, size, sha256 from artifact_entries where collection = 'plain' order by path"
        )
        assert held.fetchall() == [
            (name, md5(data), len(data), hashlib.sha256(data).hexdigest())
            for name, data in sorted(FILES_OF_ONE.items())
        ]
        [row] = (
            reader.connect()
            .execute(
                "select type, version, state, run_id, metadata, deleted_at from artifacts where collection = 'plain'"
            )
            .fetchall()
        )
    assert row == ("data", 0, "COMMITTED", "r", '{"a": NaN}', None)


def test_bytes_that_are_here_are_not_sent_again_within_an_entity(server: Server) -> None:
    Logging(server, "sent-1", {"x": b"only once"}).all()
    again = Logging(server, "sent-2", {"y": b"only once", "z": b"new"})
    again.create()
    assert again.send_files() == 1
    again.send_manifest()
    assert fetched(server, again.commit()["id"]) == {"y": b"only once", "z": b"new"}
    # Whoever knows the md5 of a file of another entity does not get it by that.
    stranger = Logging(server, "thief", {"x": b"only once"}, entityName="others")
    stranger.project["entityName"] = "others"
    stranger.create()
    assert stranger.announce()[0]["uploadUrl"]
    stranger.send_manifest()
    assert "did not arrive" in refused(server, COMMIT, id=stranger.id)


def test_an_identical_artifact_is_no_new_version(server: Server) -> None:
    first = Logging(server, "twice", {"x": b"1"}).all()
    Logging(server, "twice", {"x": b"2"}).all()
    alias = {"artifactCollectionName": "twice", "alias": "old"}
    again = Logging(server, "twice", {"x": b"1"}, aliases=[alias]).create()
    assert (again["id"], again["state"]) == (first["id"], "COMMITTED")
    assert again["artifactSequence"]["latestArtifact"]["versionIndex"] == 1
    aliases = {v["versionIndex"]: [a["alias"] for a in v["aliases"]] for v in versions(server, "twice")}
    assert aliases == {0: ["old", "v0"], 1: ["latest", "v1"]}
    on_purpose = Logging(server, "twice", {"x": b"1"}, enableDigestDeduplication=False).all()
    assert on_purpose["versionIndex"] == 2


def test_what_was_deleted_can_be_logged_again_and_gets_a_number_of_its_own(server: Server) -> None:
    logging = Logging(server, "again", {"x": b"again"})
    first = logging.all()
    delete = "mutation($id: ID!) { deleteArtifact(input: {artifactID: $id, deleteAliases: true}) { artifact { id } } }"
    server.graphql(delete, id=first["id"])
    assert versions(server, "again") == []
    second = logging.all()  # by the same client, even
    assert second["versionIndex"] == 1 and second["id"] != first["id"]
    assert fetched(server, second["id"]) == {"x": b"again"}
    query = "query($c: ID!) { clientIDMapping(clientID: $c) { serverID } }"
    mapped = server.graphql(query, c=logging.input["clientID"])
    assert mapped["clientIDMapping"] == {"serverID": second["id"]}
    # A client that was led to the version of another, which is deleted meanwhile.
    led = Logging(server, "again", {"x": b"again"})
    assert led.create()["id"] == second["id"]
    server.graphql(delete, id=second["id"])
    assert server.graphql(query, c=led.input["clientID"])["clientIDMapping"] is None
    third = led.all()
    assert third["versionIndex"] == 2 and fetched(server, third["id"]) == {"x": b"again"}
    assert server.graphql(query, c=led.input["clientID"])["clientIDMapping"] == {"serverID": third["id"]}


def test_nobody_sees_what_is_not_committed_and_it_can_be_finished_after_a_restart(server: Server) -> None:
    logging = Logging(server, "unfinished", {"x": b"some", "y": b"more"})
    logging.create()
    logging.send_files()
    assert versions(server, "unfinished") == []
    with Reader(server.root) as reader:
        assert reader.connect().execute("select * from artifacts where collection = 'unfinished'").fetchall() == []
    server.kill()
    server.start()
    assert versions(server, "unfinished") == []
    again = logging.create()  # the same client asks again: it is the same draft
    assert again["state"] == "PENDING" and again["id"] == logging.id
    logging.send_manifest()
    done = logging.commit()
    assert logging.commit() == done  # so does asking twice
    assert fetched(server, done["id"]) == logging.files
    assert len(versions(server, "unfinished")) == 1
    assert not list((server.root / "live" / "artifacts").glob("*.parts"))
    assert done["id"] not in str(list((server.root / "live" / "artifacts").iterdir()))


Lie = Callable[[Logging], str]


def _wrong_bytes(logging: Logging) -> str:
    answer = put(logging.announce()[0]["uploadUrl"], b"something else")
    assert answer.status_code == 400 and md5(b"something else") in answer.text
    logging.send_manifest()
    return refused(logging.server, COMMIT, id=logging.id)


def _missing_file(logging: Logging) -> str:
    logging.send_manifest()
    return refused(logging.server, COMMIT, id=logging.id)


def _missing_manifest(logging: Logging) -> str:
    logging.send_files()
    return refused(logging.server, COMMIT, id=logging.id)


def _wrong_size(logging: Logging) -> str:
    logging.send_files()
    logging.entries["x"]["size"] += 1
    logging.send_manifest()
    return refused(logging.server, COMMIT, id=logging.id)


def _more_in_the_manifest_than_announced(logging: Logging) -> str:
    logging.send_files()
    logging.entries["another"] = logging.entries["x"]
    logging.send_manifest()
    return refused(logging.server, COMMIT, id=logging.id)


def _another_manifest_than_announced(logging: Logging) -> str:
    logging.send_files()
    answer = put(logging.manifest_url(b"announced"), manifest(logging.entries))
    assert answer.status_code == 400
    return refused(logging.server, COMMIT, id=logging.id)


def _bytes_as_manifest(data: bytes) -> Lie:
    def lie(logging: Logging) -> str:
        logging.send_files()
        logging.send_manifest(data)
        return refused(logging.server, COMMIT, id=logging.id)

    return lie


def _entry(name: str, entry: object) -> Lie:
    def lie(logging: Logging) -> str:
        return _bytes_as_manifest(manifest({name: entry}))(logging)  # type: ignore[dict-item]

    return lie


LIES: dict[str, tuple[Lie, str]] = {
    "wrong bytes": (_wrong_bytes, "did not arrive"),
    "a missing file": (_missing_file, "did not arrive"),
    "no manifest": (_missing_manifest, "manifest of artifact `lies` did not arrive"),
    "another size": (_wrong_size, "has 4 bytes, its manifest says 5"),
    "more entries": (_more_in_the_manifest_than_announced, "has the digest"),
    "another manifest": (_another_manifest_than_announced, "did not arrive"),
    "no JSON": (_bytes_as_manifest(b"{"), "is no JSON"),
    "a list": (_bytes_as_manifest(b"[]"), "is no object"),
    "another version": (_bytes_as_manifest(b'{"version": 2, "contents": {}}'), "version"),
    "a climbing name": (_entry("a/../../x", {"digest": "x"}), "relative path"),
    "an absolute name": (_entry("/etc/passwd", {"digest": "x"}), "relative path"),
    "an empty name": (_entry("", {"digest": "x"}), "relative path"),
    "an entry that is none": (_entry("x", 7), "no object"),
    "no digest": (_entry("x", {"size": 1}), "without a digest"),
    "a negative size": (_entry("x", {"digest": "x", "size": -1}), "of size"),
    "a ref that is none": (_entry("x", {"digest": "x", "ref": 1}), "no text"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_client_that_lies_is_told_and_nothing_is_committed(server: Server, lie: str) -> None:
    logging = Logging(server, "lies", {"x": lie.encode()[:4]})
    logging.create()
    said, expected = LIES[lie][0](logging), LIES[lie][1]
    assert expected in said and "log" in said
    assert versions(server, "lies") == []
    with Reader(server.root) as reader:
        assert reader.connect().execute("select * from artifacts where collection = 'lies'").fetchall() == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"artifactCollectionName": "a/b"}, "cannot be the name"),
    ({"artifactCollectionName": ""}, "cannot be the name"),
    ({"artifactTypeName": " "}, "type"),
    ({"artifactTypeName": "model"}, "of type `data`"),
    ({"metadata": "[1]"}, "no JSON object"),
    ({"runName": "nobody"}, "no run"),
    ({"aliases": [{"artifactCollectionName": "x", "alias": "v3"}]}, "cannot be an alias"),
    ({"aliases": [{"artifactCollectionName": "x", "alias": "a/b"}]}, "cannot be an alias"),
    ({"tags": [{"tagName": ""}]}, "cannot be a tag"),
    ({"digestAlgorithm": "MANIFEST_XXH128"}, "digest algorithm"),
]


@pytest.mark.parametrize(("given", "expected"), REFUSED)
def test_what_cannot_be_logged_is_refused_at_once(server: Server, given: dict[str, Any], expected: str) -> None:
    if not versions(server, "typed"):
        Logging(server, "typed", {"x": b"x"}).all()
    assert expected in refused(server, CREATE, i=Logging(server, "typed", {"x": b"y"}, **given).input)


def test_links_are_good_for_what_they_were_made_for(server: Server) -> None:
    one, two = Logging(server, "links-1", {"x": b"one"}), Logging(server, "links-2", {"x": b"two"})
    one.create()
    two.create()
    first, second = (logging.announce()[0]["uploadUrl"] for logging in (one, two))
    signature = first.partition("?")[2]
    assert put(second.partition("?")[0] + "?" + signature, b"two").status_code == 403
    assert put(second.partition("?")[0], b"two").status_code == 403
    key = ("api", server.key)  # a key alone is not enough: nobody sends bytes that he did not announce
    assert requests.put(second.partition("?")[0], data=b"two", auth=key, timeout=300).status_code == 403
    two.send_files()
    two.send_manifest()
    link = entries(server, two.commit()["id"])["x"]["directUrl"]
    sha256 = hashlib.sha256(b"two").hexdigest()
    assert requests.get(link, timeout=300).content == b"two"
    assert requests.get(f"{server.url}/artifact-bytes/{sha256}/x", auth=key, timeout=300).status_code == 403
    assert requests.get(link.replace(sha256, "0" * 64), timeout=300).status_code == 403
    assert put(link, b"3").status_code in (403, 404, 405)


def test_nothing_can_be_changed_in_a_committed_artifact(server: Server) -> None:
    logging = Logging(server, "closed", {"x": b"closed"})
    logging.create()
    url = logging.announce()[0]["uploadUrl"]
    logging.send_files()
    logging.send_manifest()
    logging.commit()
    assert put(url, b"closed").status_code == 404
    asked = {"artifactFiles": [{"artifactID": logging.id, "name": "y", "md5": md5(b"y")}]}
    assert "cannot change" in refused(server, FILES, i=asked)
    i = {**logging.project, "artifactID": logging.id, "name": "m", "digest": ""}
    assert "cannot change" in refused(server, MANIFEST, i=i)


def test_a_file_in_parts(server: Server) -> None:
    data = random.Random(1).randbytes(300_000)
    pieces = [data[:131_072], data[131_072:262_144], data[262_144:]]
    parts = [{"partNumber": n, "hexMD5": hashlib.md5(p).hexdigest()} for n, p in enumerate(pieces, 1)]
    logging = Logging(server, "parts", {"big.bin": data, "small.bin": b"s"})
    logging.create()
    big, small = logging.announce(**{"big.bin": parts})
    assert put(small["uploadUrl"], b"s").ok and small["uploadMultipartUrls"] is None
    upload = big["uploadMultipartUrls"]
    urls = [u["uploadUrl"] for u in sorted(upload["uploadUrlParts"], key=lambda u: u["partNumber"])]
    assert put(urls[0], b"not this").status_code == 400

    def complete(parts: list[dict[str, Any]]) -> dict[str, Any]:
        i = {"completeMultipartAction": "Complete", "completedParts": parts, "artifactID": logging.id}
        return ask(server, COMPLETE, i=i | {"storagePath": big["storagePath"], "uploadID": upload["uploadID"]})

    etags = []
    for n in (2, 0):
        etags.append({"partNumber": n + 1, "hexMD5": put(urls[n], pieces[n]).headers["ETag"]})
    server.kill()
    server.start()
    assert "did not arrive" in complete(parts)["errors"][0]["message"]
    assert "numbered from 1" in complete(parts[1:])["errors"][0]["message"]
    etags.append({"partNumber": 2, "hexMD5": put(urls[1], pieces[1]).headers["ETag"]})
    for _ in range(2):  # the second time for an answer that was lost
        assert complete(etags)["data"]["completeMultipartUploadArtifact"]["digest"] == md5(data)
    logging.send_manifest()
    assert fetched(server, logging.commit()["id"]) == logging.files
    assert not list((server.root / "live" / "artifacts").glob("*.parts"))


def test_many_at_once_get_numbers_without_gaps_or_doubles(server: Server) -> None:
    def log(n: int) -> tuple[str, int, bytes]:
        data = f"file {n}".encode()
        done = Logging(server, "many", {"x": data}).all()
        return done["id"], done["versionIndex"], data

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(log, range(16)))
    assert sorted(number for _, number, _ in made) == list(range(16))
    held = versions(server, "many")
    assert {(v["id"], v["versionIndex"]) for v in held} == {(i, number) for i, number, _ in made}
    assert [v["versionIndex"] for v in held] == list(range(15, -1, -1))
    assert sum("latest" in [a["alias"] for a in v["aliases"]] for v in held) == 1
    assert all(fetched(server, i) == {"x": data} for i, _, data in made[:5])


def test_the_same_logged_by_many_at_once_is_one_version(server: Server) -> None:
    makers = [Logging(server, "same", {"x": b"the same"}) for _ in range(6)]
    for logging in makers:
        assert logging.create()["state"] == "PENDING"
        logging.send_files()
        logging.send_manifest()
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda logging: logging.commit(), makers))
    assert {found["versionIndex"] for found in done} == {0} and len(versions(server, "same")) == 1
    # Each client goes on to ask for the artifact by the id that it was given.
    assert all(fetched(server, logging.id) == {"x": b"the same"} for logging in makers)


def test_a_commit_that_is_sent_several_times_at_once_is_one(server: Server) -> None:
    for n in range(3):
        logging = Logging(server, "impatient", {"x": b"x"}, enableDigestDeduplication=False)
        logging.create()
        logging.send_files()
        logging.send_manifest()
        with ThreadPoolExecutor(5) as pool:
            done = list(pool.map(lambda logging: logging.commit(), [logging] * 5))
        assert [found["versionIndex"] for found in done] == [n] * 5
    assert len(versions(server, "impatient")) == 3


def test_several_clients_make_one_artifact(server: Server) -> None:
    """`run.upsert_artifact(.., distributed_id=..)`, then `finish_artifact`."""
    parts = [Logging(server, "together", {f"{n}": f"part {n}".encode()}, distributedID="group") for n in range(3)]
    for part in parts:
        assert part.create()["state"] == "PENDING"
        part.send_files()
        i = {**part.project, "artifactID": part.id, "name": "wandb_manifest.patch.json", "digest": "", "type": "PATCH"}
        name = server.graphql(MANIFEST, i=i)["createArtifactManifest"]["artifactManifest"]["id"]
        data = manifest(part.entries)
        change = {"artifactManifestID": name, "digest": md5(data)}
        url = server.graphql(UPDATE_MANIFEST, i=change)["updateArtifactManifest"]["artifactManifest"]["file"][
            "uploadUrl"
        ]
        assert put(url, data).ok
    assert len({part.id for part in parts}) == 1
    mapping = "query($c: ID!) { clientIDMapping(clientID: $c) { serverID } }"
    for part in parts:
        assert server.graphql(mapping, c=part.input["clientID"])["clientIDMapping"] == {"serverID": part.id}
    done = parts[0].commit()
    whole = {name: data for part in parts for name, data in part.files.items()}
    merged = {name: entry for part in parts for name, entry in part.entries.items()}
    assert (done["digest"], fetched(server, done["id"])) == (digest(merged), whole)


def test_an_incremental_artifact_adds_to_its_base(server: Server) -> None:
    base = Logging(server, "grows", {"a": b"1", "b": b"2"})
    first = base.all()
    more = Logging(server, "grows", {"b": b"changed", "c": b"3"})
    assert more.create()["artifactSequence"]["latestArtifact"]["id"] == first["id"]
    more.send_files()
    more.send_manifest(kind="INCREMENTAL", base=first["id"])
    done = more.commit()
    assert (done["versionIndex"], done["digest"]) == (1, digest(base.entries | more.entries))
    assert fetched(server, done["id"]) == {"a": b"1", "b": b"changed", "c": b"3"}


def test_a_large_file_does_not_grow_the_server(server: Server) -> None:
    size, block = 200 << 20, os.urandom(1 << 20)
    hashed = hashlib.md5()
    for _ in range(200):
        hashed.update(block)

    def memory() -> int:
        assert server.process
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    logging = Logging(server, "large", {"small": b"x"})
    logging.entries = {"large.bin": {"digest": base64.b64encode(hashed.digest()).decode(), "size": size}}
    logging.input["digest"] = digest(logging.entries)
    logging.create()
    before = memory()
    asked = [{"artifactID": logging.id, "name": "large.bin", "md5": logging.entries["large.bin"]["digest"]}]
    [edge] = server.graphql(FILES, i={"artifactFiles": asked})["createArtifactFiles"]["files"]["edges"]
    assert requests.put(edge["node"]["uploadUrl"], data=(block for _ in range(200)), timeout=300).ok
    logging.send_manifest()
    done = logging.commit()
    again = hashlib.md5()
    with requests.get(entries(server, done["id"])["large.bin"]["directUrl"], stream=True, timeout=300) as answer:
        for piece in answer.iter_content(1 << 20):
            again.update(piece)
    assert again.digest() == hashed.digest()
    grown = memory() - before
    print(f"a file of 200 MB: the server's peak grew by {grown} kB")
    assert grown < 100_000


def test_a_killed_server_has_every_artifact_it_acknowledged(tmp_path: Path) -> None:
    """Four clients log while the server is killed again and again: nothing is missing, and nothing is there twice."""
    done: dict[bytes, dict[str, Any]] = {}
    stop = threading.Event()

    with serving(tmp_path / "mirror") as server:

        def log(client: int) -> None:
            n = 0
            while not stop.is_set():
                data = f"{client} {n}".encode()
                logging = Logging(server, "killed", {"x": data, "shared": b"shared"})
                while not stop.is_set():
                    try:
                        done[data] = logging.all()
                        break
                    except (requests.RequestException, AssertionError):
                        stop.wait(0.05)  # the server is away: the client asks again, as the SDK does
                n += 1

        threads = [threading.Thread(target=log, args=(client,)) for client in range(4)]
        for thread in threads:
            thread.start()
        for kills in range(3):
            end = time.monotonic() + 300
            while len(done) < 4 * (kills + 1) and time.monotonic() < end:
                stop.wait(0.02)
            if kills < 2:
                stop.wait(random.uniform(0, 0.2))
                server.kill()
                server.start()
        stop.set()
        for thread in threads:
            thread.join(300)
        held = {v["id"]: v for v in versions(server, "killed")}
        numbers = sorted(v["versionIndex"] for v in held.values())
        assert numbers == list(range(len(numbers)))
        assert len({v["digest"] for v in held.values()}) == len(held)
        assert len(done) >= 12
        for artifact in done.values():
            assert held[artifact["id"]]["versionIndex"] == artifact["versionIndex"]
            assert held[artifact["id"]]["digest"] == artifact["digest"]
        for data, artifact in list(done.items())[::5]:
            assert fetched(server, artifact["id"]) == {"x": data, "shared": b"shared"}
