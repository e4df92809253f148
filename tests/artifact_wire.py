"""Logging an artifact over the wire step by step, as W&B's SDK does it: for clients that stop, lie or hurry."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from typing import Any

import requests
from serving import Server

CREATE = """mutation($i: CreateArtifactInput!) { createArtifact(input: $i) { artifact {
    id state digest versionIndex artifactSequence { id latestArtifact { id versionIndex } } } } }"""
MANIFEST = """mutation($i: CreateArtifactManifestInput!) { createArtifactManifest(input: $i) { artifactManifest {
    id file { uploadUrl uploadHeaders } } } }"""
UPDATE_MANIFEST = """mutation($i: UpdateArtifactManifestInput!) { updateArtifactManifest(input: $i) { artifactManifest {
    id file { uploadUrl } } } }"""
FILES = """mutation($i: CreateArtifactFilesInput!) { createArtifactFiles(input: $i) { files { edges { node {
    name storagePath uploadUrl uploadMultipartUrls { uploadID uploadUrlParts { partNumber uploadUrl } }
    artifact { id } } } } } }"""
COMPLETE = """mutation($i: CompleteMultipartUploadArtifactInput!) { completeMultipartUploadArtifact(input: $i) {
    digest } }"""
COMMIT = (
    """mutation($id: ID!) { commitArtifact(input: {artifactID: $id}) { artifact { id digest state versionIndex } } }"""
)
VERSIONS = """query($e: String!, $p: String!, $c: String!) { project(name: $p, entityName: $e) {
    artifactCollection(name: $c) { artifacts(first: 1000) { totalCount edges { version node {
    id state digest versionIndex size fileCount aliases { alias } } } } } } }"""
ENTRIES = """query($id: ID!) { artifact(id: $id) { files(first: 1000) { edges { node {
    name directUrl url sizeBytes md5 } } } currentManifest { file { directUrl } } } }"""


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def contents(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """The entries of a manifest with these files."""
    return {name: {"digest": md5(data), "size": len(data)} for name, data in files.items()}


def digest(entries: dict[str, dict[str, Any]]) -> str:
    """The digest of an artifact with these entries."""
    lines = "".join(f"{name}:{entries[name]['digest']}\n" for name in sorted(entries))
    return hashlib.md5(f"wandb-artifact-manifest-v1\n{lines}".encode()).hexdigest()


def manifest(entries: dict[str, dict[str, Any]]) -> bytes:
    policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
    return json.dumps({"version": 1, **policy, "contents": entries}).encode()


def put(url: str, data: bytes) -> requests.Response:
    return requests.put(url, data=data, timeout=300)  # no key, as the SDK


def ask(server: Server, query: str, key: str | None = None, **variables: Any) -> dict[str, Any]:
    """The whole answer, errors and all."""
    answer = requests.post(
        f"{server.url}/graphql",
        json={"query": query, "variables": variables},
        auth=("api", key or server.key),
        timeout=300,
    )
    found: dict[str, Any] = answer.json()
    return found


def refused(server: Server, query: str, **variables: Any) -> str:
    """The message of an answer that must be an error."""
    found = ask(server, query, **variables)
    assert found.get("errors"), found
    message: str = found["errors"][0]["message"]
    assert "internal error" not in message, message
    return message


class Logging:
    """One artifact on its way in."""

    def __init__(self, server: Server, collection: str, files: dict[str, bytes], **given: Any) -> None:
        self.server = server
        self.files = files
        self.entries = contents(files)
        self.project = {"entityName": "local", "projectName": "p"}
        self.input = {
            **self.project,
            "artifactTypeName": "data",
            "artifactCollectionName": collection,
            "digest": digest(self.entries),
            "digestAlgorithm": "MANIFEST_MD5",
            "enableDigestDeduplication": True,
            "clientID": secrets.token_hex(64),
            "aliases": [{"artifactCollectionName": collection, "alias": "latest"}],
            **given,
        }
        self.id = ""

    def create(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.graphql(CREATE, i=self.input)["createArtifact"]["artifact"]
        self.id = found["id"]
        return found

    def announce(self, **parts: Any) -> list[dict[str, Any]]:
        """Where to send each file, in order."""
        asked = [
            {"artifactID": self.id, "name": name, "md5": md5(data), "uploadPartsInput": parts.get(name)}
            for name, data in self.files.items()
        ]
        edges = self.server.graphql(FILES, i={"artifactFiles": asked, "storageLayout": "V2"})
        return [edge["node"] for edge in edges["createArtifactFiles"]["files"]["edges"]]

    def send_files(self) -> int:
        """Send what the server wants; returns how many files that were."""
        wanted = [(node, data) for node, data in zip(self.announce(), self.files.values(), strict=True)]
        sent = [put(node["uploadUrl"], data) for node, data in wanted if node["uploadUrl"]]
        assert all(answer.ok for answer in sent), [a.text for a in sent]
        return len(sent)

    def manifest_url(self, data: bytes, kind: str = "FULL", base: str | None = None) -> str:
        i = {**self.project, "artifactID": self.id, "name": "wandb_manifest.json", "digest": md5(data), "type": kind}
        found = self.server.graphql(MANIFEST, i=i | {"baseArtifactID": base})
        url: str = found["createArtifactManifest"]["artifactManifest"]["file"]["uploadUrl"]
        return url

    def send_manifest(self, data: bytes | None = None, kind: str = "FULL", base: str | None = None) -> None:
        data = manifest(self.entries) if data is None else data
        answer = put(self.manifest_url(data, kind, base), data)
        assert answer.ok, answer.text

    def commit(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.graphql(COMMIT, id=self.id)["commitArtifact"]["artifact"]
        return found

    def all(self) -> dict[str, Any]:
        """The whole way; returns the committed artifact."""
        found = self.create()
        if found["state"] == "COMMITTED":
            return found
        self.send_files()
        self.send_manifest()
        return self.commit()


def versions(server: Server, collection: str) -> list[dict[str, Any]]:
    """The committed versions of a collection, newest first; none if there is no such collection."""
    project = server.graphql(VERSIONS, e="local", p="p", c=collection)["project"]
    found = (project or {}).get("artifactCollection")
    return [edge["node"] for edge in found["artifacts"]["edges"]] if found else []


def entries(server: Server, artifact_id: str) -> dict[str, dict[str, Any]]:
    """name -> file of a committed artifact."""
    found = server.graphql(ENTRIES, id=artifact_id)["artifact"]["files"]["edges"]
    return {edge["node"]["name"]: edge["node"] for edge in found}


def fetched(server: Server, artifact_id: str) -> dict[str, bytes]:
    """name -> the bytes of a committed artifact, by its links."""
    found = entries(server, artifact_id)
    answers = {name: requests.get(file["directUrl"], timeout=300) for name, file in found.items()}
    assert all(a.ok for a in answers.values()), [a.text for a in answers.values()]
    return {name: answer.content for name, answer in answers.items()}
