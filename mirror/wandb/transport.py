"""HTTP to one W&B server: pooled connections, one retry policy, one rate budget, errors people understand."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import urljoin

import orjson
import requests
import urllib3
from requests.adapters import HTTPAdapter

from mirror.credentials import Credential, KeyAuth
from mirror.errors import TerminalSourceError, TransientSourceError
from mirror.wandb.budget import Budget

_T = TypeVar("_T")

_NO_RETRY = {400, 401, 403, 404, 409, 410, 413, 422, 501}
"""Answers that asking again does not change; 429 has a policy of its own."""


@dataclass(frozen=True)
class Patience:
    """How often a request is tried. Waits double from `first_wait` to `longest_wait` s, with 25 % jitter."""

    tries: int
    first_wait: float = 0.5
    longest_wait: float = 30.0
    refusals: int = 60
    """429s in a row until we give up; the budget decides how long each of them waits."""

    def pause(self, attempt: int) -> float:
        return min(self.first_wait * 2.0**attempt, self.longest_wait) * random.uniform(1, 1.25)


BRIEF = Patience(tries=2)
"""For a request that can be split when it fails."""
NORMAL = Patience(tries=4)
LONG = Patience(tries=9)
"""For a request nothing goes on without: more than a minute."""


@dataclass
class Traffic:
    """What was asked of the server so far."""

    queries: int = 0
    downloads: int = 0
    bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def requests(self) -> int:
        return self.queries + self.downloads

    def count(self, *, queries: int = 0, downloads: int = 0, nbytes: int = 0) -> None:
        with self.lock:
            self.queries += queries
            self.downloads += downloads
            self.bytes += nbytes


class RefusedQuery(TerminalSourceError):
    """The server understood the request and answered with GraphQL errors. `errors` and `status` are as served."""

    def __init__(self, message: str, errors: Sequence[dict[str, Any]], status: int = 200) -> None:
        super().__init__(message)
        self.errors = errors
        self.status = status

    @property
    def aliases(self) -> set[str]:
        """The names on the paths of the errors: which parts of the query failed."""
        return {p for e in self.errors for p in (e.get("path") or []) if isinstance(p, str)}


class ReadOnly(TerminalSourceError):
    """Something was about to be written to a server that was opened for reading alone, as every source is."""


class TooLarge(TerminalSourceError):
    """The answer is longer than its receiver wants to hold at once: ask for less."""


class UnknownFields(RefusedQuery):
    """The server does not know some fields; `fields` are (type, field) pairs."""

    _PATTERN = re.compile(r'Cannot query field "([^"]+)" on type "([^"]+)"')

    def __init__(self, message: str, errors: Sequence[dict[str, Any]], status: int = 200) -> None:
        super().__init__(message, errors, status)
        self.fields = {(t, f) for e in errors for f, t in self._PATTERN.findall(_text(e.get("message")))}


Body = bytes | Callable[[], BinaryIO]
"""What is sent: bytes, or what opens a file of them anew for every try."""

_JSON = {"Content-Type": "application/json"}
_MUTATION = re.compile(r"\bmutation\b")


class _Session(requests.Session):
    """Redirects carry the key only where `KeyAuth` lets it go, and never pick up a netrc entry."""

    key: KeyAuth

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        self.key(prepared_request)


class Sink(Protocol):
    """Where a download goes: begun anew (`seek(0)`, `truncate()`) when it has to be made again. `tell()` is how many
    bytes are there."""

    def tell(self) -> int: ...

    def seek(self, offset: int, /) -> object: ...

    def truncate(self) -> object: ...

    def write(self, data: bytes, /) -> object: ...


class Transport:
    """Requests to one server; used by many threads at once."""

    def __init__(
        self,
        base_url: str,
        credential: Credential,
        *,
        budget: Budget | None = None,
        connections: int = 32,
        timeout: float = 60.0,
        user_agent: str = "wandb-mirror",
        writable: bool = False,
    ) -> None:
        self.base_url = base_url
        self.writable = writable
        """Whether anything may be changed on the server; without it mutations and uploads are refused here."""
        self.credential = credential
        self.budget = budget or Budget()
        self.traffic = Traffic()
        self.store_id: str | None = None
        """The identity of the mirror behind the server, if the server is a `mirror serve`."""
        self._timeout = (10.0, timeout)
        self._auth = KeyAuth(credential, base_url)
        self._session = _Session()
        self._session.key = self._auth
        self._session.headers["User-Agent"] = user_agent
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def close(self) -> None:
        self._session.close()

    # -- GraphQL ------------------------------------------------------------------------------------------

    def graphql(
        self,
        query: str,
        variables: dict[str, Any],
        *,
        patience: Patience = NORMAL,
        limit: int | None = None,
        check: Callable[[dict[str, Any]], None] = lambda data: None,
    ) -> tuple[dict[str, Any], int]:
        """Ask; the answer's `data` and the size of its body, `limit` bytes at most. Raises a SourceError.

        `check` may refuse data by raising one; if that is a transient one, it is asked again.
        """
        if _MUTATION.search(query):
            self._check_writable()
        url = f"{self.base_url}/graphql"
        body = orjson.dumps({"query": query, "variables": variables})

        def answer(status: int, text: bytes, headers: Any) -> tuple[dict[str, Any], int]:
            self.store_id = headers.get("Mirror-Store", self.store_id)
            data = self._data(status, text, headers)
            check(data)
            return data, len(text)

        return self._retrying("POST", url, body, patience, answer, limit)

    def _data(self, status: int, text: bytes, headers: Any) -> dict[str, Any]:
        if 300 <= status < 400:
            raise TerminalSourceError(
                f"`{self.base_url}` sends us on to `{headers.get('Location', '?')}`: give that server as --base-url"
            )
        if status in (404, 405, 501):
            raise self._no_server(f"it answers {status} to {self.base_url}/graphql")
        if status == 401:
            raise self.wrong_key()
        try:
            reply = loads(text)
        except ValueError as e:
            if text.lstrip()[:1] in (b"{", b"["):
                raise TransientSourceError(f"`{self.base_url}` sent an answer that breaks off", e) from e
            raise self._no_server("its answer is no JSON") from e
        errors = _errors(reply)
        if errors:
            if any("not logged in" in _text(e.get("message")).lower() for e in errors):
                raise self.wrong_key()
            message = "; ".join(dict.fromkeys(_text(e.get("message")) for e in errors))[:2000]
            kind = UnknownFields if UnknownFields("", errors).fields else RefusedQuery
            raise kind(f"`{self.base_url}` refused a query: {message}", errors, status)
        data = reply.get("data") if isinstance(reply, dict) else None
        if status != 200 or not isinstance(data, dict):
            raise self._no_server(f"it answers {status} without GraphQL data")
        return data

    def wrong_key(self) -> TerminalSourceError:
        what = f"`{self.base_url}` does not accept the API key from {self.credential.origin}: check that it belongs to"
        if self.credential.is_from_environment:
            return TerminalSourceError(f"{what} this server; the variable goes before what `wandb login` has written")
        return TerminalSourceError(f"{what} this server, or run `wandb login --relogin --host {self.base_url}`")

    def _no_server(self, why: str) -> TerminalSourceError:
        return TerminalSourceError(
            f"`{self.base_url}` is no W&B server ({why}): check the address (--base-url, WANDB_BASE_URL); "
            "W&B's cloud is https://api.wandb.ai"
        )

    # -- downloads ----------------------------------------------------------------------------------------

    def download(self, url: str, *, limit: int = 64 << 20, patience: Patience = NORMAL) -> bytes | None:
        """The bytes behind a file's URL; None if there are none (404, 410). At most `limit` bytes."""
        url = urljoin(self.base_url + "/", url)

        def answer(status: int, content: bytes, headers: Any) -> bytes | None:
            if status in (404, 410):
                return None
            if status >= 300:
                raise TerminalSourceError(f"`{_bare(url)}` cannot be downloaded: the server answers {status}")
            return content

        return self._retrying("GET", url, None, patience, answer, limit)

    def save(self, url: str, out: Sink, *, resume: bool = False, patience: Patience = NORMAL) -> None:
        """Write the bytes behind a file's URL to `out`, however many they are. Raises a SourceError.

        With `resume` only those after the ones `out` has are asked for, at first and after every connection that
        broke off: for receivers who check the whole in the end.
        """
        url = urljoin(self.base_url + "/", url)

        def answer(status: int, content: bytes, headers: Any) -> None:
            if status >= 300:
                raise TerminalSourceError(f"`{_bare(url)}` cannot be downloaded: the server answers {status}")

        self._retrying("GET", url, None, patience, answer, out=out, resume=resume)

    # -- sending ------------------------------------------------------------------------------------------

    def send(
        self,
        method: str,
        url: str,
        body: Body,
        answer: Callable[[int, bytes, Any], _T],
        *,
        headers: Mapping[str, str] | None = None,
        patience: Patience = NORMAL,
    ) -> _T:
        """POST or PUT to a URL of the server, or to one it gave us. `answer` makes the result of status, content and
        headers; a TransientSourceError it raises has the request made again. Raises a SourceError."""
        self._check_writable()
        url = urljoin(self.base_url + "/", url)
        return self._retrying(method, url, body, patience, answer, headers=headers or {})

    def _check_writable(self) -> None:
        if not self.writable:
            raise ReadOnly(f"`{self.base_url}` was opened for reading: nothing is written to it")

    # -- the one retry policy -----------------------------------------------------------------------------

    def _retrying(
        self,
        method: str,
        url: str,
        body: Body | None,
        patience: Patience,
        answer: Callable[[int, bytes, Any], _T],
        limit: int | None = None,
        out: Sink | None = None,
        headers: Mapping[str, str] = _JSON,
        resume: bool = False,
    ) -> _T:
        attempt = refusals = 0
        while True:
            sent_at = self.budget.wait()
            try:
                status, content, told = self._once(method, url, body, limit, out, headers, resume)
                self.budget.heard(status, told, sent_at)
                if status == 429:
                    refusals += 1
                    if refusals > patience.refusals:
                        raise TransientSourceError(f"`{self.base_url}` keeps answering 429: try again later")
                    continue
                if status >= 400 and status not in _NO_RETRY:
                    raise TransientSourceError(f"`{self.base_url}` answers {status}{reason(content)}: try again later")
                return answer(status, content, told)
            except TransientSourceError:
                attempt += 1
                if attempt >= patience.tries:
                    raise
                self.budget.sleep(patience.pause(attempt - 1))

    def _once(
        self,
        method: str,
        url: str,
        body: Body | None,
        limit: int | None,
        out: Sink | None,
        headers: Mapping[str, str],
        resume: bool,
    ) -> tuple[int, bytes, Any]:
        self.traffic.count(queries=int(method == "POST"), downloads=int(method == "GET"))
        file = body() if callable(body) else None
        held = out.tell() if out is not None and resume else 0
        if resume:  # places in a body that is compressed on the way mean nothing
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
        try:
            with self._session.request(
                method,
                url,
                data=file if callable(body) else body,
                headers=dict(headers) if body or resume else None,
                auth=self._auth,
                timeout=self._timeout,
                stream=True,
                allow_redirects=method == "GET",
            ) as response:
                if out is not None and response.status_code < 300:
                    self._copy(response, out, held if response.status_code == 206 else 0)
                    return response.status_code, b"", response.headers
                if held and response.status_code == 416 and out is not None:
                    self._begin_anew(out)  # and asked again: there are fewer bytes than were taken for its own
                    raise TransientSourceError(f"`{_bare(url)}` has no more than {held} bytes")
                # One read: response.content would copy in pieces of 10 kB.
                content = response.raw.read(limit and limit + 1, decode_content=True)
                self.traffic.count(nbytes=response.raw.tell())
                if limit and len(content) > limit:
                    raise TooLarge(f"`{_bare(url)}` answers with more than {limit} bytes")
                return response.status_code, content, response.headers
        except requests.exceptions.SSLError as e:
            if "WRONG_VERSION_NUMBER" in str(e):
                plain = f"http://{self.base_url.removeprefix('https://')}"
                raise TerminalSourceError(
                    f"`{self.base_url}` does not speak TLS: name it as `{plain}` (--base-url or WANDB_BASE_URL)", e
                ) from e
            raise TerminalSourceError(
                f"`{self.base_url}` shows a certificate that cannot be verified ({_root(e)}): "
                "set REQUESTS_CA_BUNDLE to your organisation's CA file",
                e,
            ) from e
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as e:
            raise TerminalSourceError(f"`{_bare(url)}` is no URL to ask: check the address", e) from e
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as e:
            raise TransientSourceError(
                f"`{self.base_url}` did not answer within {self._timeout[1]:.0f} s: try again later", e
            ) from e
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as e:
            raise TransientSourceError(
                f"cannot reach `{self.base_url}` ({_root(e)}): check the address, the network and proxies", e
            ) from e
        finally:
            if file:
                file.close()

    def _begin_anew(self, out: Sink) -> None:
        out.seek(0)
        out.truncate()

    def _copy(self, response: requests.Response, out: Sink, held: int) -> None:
        """Write the body after the `held` bytes that it continues; without any, from the beginning."""
        if held and not response.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
            self._begin_anew(out)
            raise TransientSourceError(f"`{self.base_url}` sent another part of a file than was asked for")
        if not held:
            self._begin_anew(out)
        for chunk in response.raw.stream(1 << 20, decode_content=True):
            self.traffic.count(nbytes=len(chunk))
            try:
                out.write(chunk)
            except OSError as e:
                raise TerminalSourceError(
                    f"a download cannot be written ({e.strerror}): make room, or name another folder", e
                ) from e


def loads(text: bytes | str) -> Any:
    """JSON as servers write it: bare NaN and Infinity tokens too, which orjson refuses. Raises ValueError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text.decode("utf-8", "replace") if isinstance(text, bytes) else text, strict=False)


def _errors(reply: Any) -> list[dict[str, Any]]:
    """The errors of an answer in any of the shapes servers use."""
    if not isinstance(reply, dict):
        return []
    errors = reply.get("errors") or reply.get("error") or []
    if not isinstance(errors, list):
        errors = [errors]
    return [e if isinstance(e, dict) else {"message": _text(e)} for e in errors]


def reason(content: bytes) -> str:
    """What an answer says of its error, in brackets; empty if it says nothing."""
    try:
        errors = _errors(loads(content))
    except ValueError:
        return ""
    message = "; ".join(_text(e.get("message")) for e in errors)[:300]
    return f" ({message})" if message else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def _bare(url: str) -> str:
    """A URL fit for messages: without its query, where signatures stand."""
    return url.split("?")[0]


def _root(error: BaseException) -> str:
    """The innermost reason of an error of urllib3 or requests, in a few words."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "reason", None)
        inner = inner or next((a for a in error.args if isinstance(a, BaseException)), None)
        inner = inner or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).rsplit(": ", 1)[-1][:200]
