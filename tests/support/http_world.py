"""Servers on real ports that answer as the documentation of other systems' APIs says."""

# ruff: noqa: ARG002, RUF012, S105 - one signature for all, plain tables, and no real token

from __future__ import annotations

import json
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

TOKEN = "token-of-the-system"


class Api:
    """Answers on a free port until `close`.

    Attributes:
        runs: What was started, oldest first; the test changes their state.
        listed: False while runs that were started are not yet listed.
        broken: Statuses to answer the next calls with, instead.
        calls: (method, path, headers, body) of every call.
    """

    def __init__(self) -> None:
        self.runs: list[dict] = []
        self.listed = True
        self.broken: list[int] = []
        self.calls: list[tuple[str, str, dict, bytes]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                api.calls.append((self.command, self.path, headers, body))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                if api.broken:
                    answer = (api.broken.pop(0), {"message": "as the test wants it"})
                elif not api.known(headers):
                    answer = (401, {"message": "Bad credentials"})
                else:
                    answer = api.answer(self.command, parts.path, query, headers, body)
                status, told, *more = answer
                data = b"" if told is None else json.dumps(told).encode()
                self.send_response(status)
                for name, value in more[0].items() if more else ():
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=[0.05], daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def known(self, headers: dict) -> bool:
        return headers.get("authorization") == f"Bearer {TOKEN}"

    def answer(self, method: str, path: str, query: dict, headers: dict, body: bytes) -> tuple:
        raise NotImplementedError


class Github(Api):
    """Actions: a dispatch is 204 without a body; runs are listed under their workflow."""

    config = {"kind": "github", "repository": "shop/models", "workflow": "retrain.yml"}
    words = {"running": ("in_progress", None), "done": ("completed", "success"),
             "broken": ("completed", "failure"), "stopped": ("completed", "cancelled")}  # fmt: skip

    def state(self, word: str) -> None:
        self.runs[-1]["status"], self.runs[-1]["conclusion"] = self.words[word]

    def answer(self, method, path, query, headers, body):
        base = "/repos/shop/models/actions/workflows/retrain.yml"
        assert headers["x-github-api-version"] == "2022-11-28"
        if (method, path) == ("POST", f"{base}/dispatches"):
            told = json.loads(body)
            if told["ref"] != "main" or len(told["inputs"]) > 10:
                return 422, {"message": "No ref found"}
            number = len(self.runs) + 30433642
            self.runs.append(
                {"id": number, "display_title": f"retrain {told['inputs']['request_id']}",
                 "status": "queued", "conclusion": None, "html_url": f"{self.url}/runs/{number}",
                 "inputs": told["inputs"]}
            )  # fmt: skip
            return 204, None
        if (method, path) == ("GET", f"{base}/runs"):
            assert query["event"] == "workflow_dispatch"
            shown = self.runs[::-1] if self.listed else []
            return 200, {"total_count": len(shown), "workflow_runs": shown}
        return 404, {"message": "Not Found"}

    def told(self) -> list[dict]:
        return [run["inputs"] for run in self.runs]


class Gitlab(Api):
    """Pipelines API v4: creating one is 201 with it; `name` filters by workflow:name."""

    config = {"kind": "gitlab", "project": "shop/models"}
    words = {"running": "running", "done": "success", "broken": "failed", "stopped": "canceled"}

    def known(self, headers):
        return headers.get("private-token") == TOKEN

    def state(self, word: str) -> None:
        self.runs[-1]["status"] = self.words[word]

    def answer(self, method, path, query, headers, body):
        if (method, path) == ("POST", "/api/v4/projects/shop%2Fmodels/pipeline"):
            told = json.loads(body)
            variables = {one["key"]: one["value"] for one in told["variables"]}
            run = {"id": 61 + len(self.runs), "status": "created", "ref": told["ref"],
                   "name": variables["STEADFEAST_REQUEST_ID"], "web_url": self.url}  # fmt: skip
            self.runs.append(run | {"variables": variables})
            return 201, run
        if (method, path) == ("GET", "/api/v4/projects/shop%2Fmodels/pipelines"):
            shown = self.runs[::-1] if self.listed else []
            return 200, [run for run in shown if run["name"] == query["name"]]
        return 404, {"message": "404 Project Not Found"}

    def told(self) -> list[dict]:
        prefix = "STEADFEAST_"
        return [
            {name.removeprefix(prefix).lower(): value for name, value in run["variables"].items()}
            for run in self.runs
        ]


class Jenkins(Api):
    """Remote access API: a build is queued (201, Location), and listed once it runs."""

    config = {"kind": "jenkins", "job": "models/retrain", "user": "ann"}

    def known(self, headers):
        return (
            headers.get("authorization") == "Basic " + b64encode(f"ann:{TOKEN}".encode()).decode()
        )

    def state(self, word: str) -> None:
        run = self.runs[-1]
        run["number"] = 7
        run["building"] = word == "running"
        run["result"] = {"done": "SUCCESS", "broken": "FAILURE", "stopped": "ABORTED"}.get(word)

    def answer(self, method, path, query, headers, body):
        job = "/job/models/job/retrain"
        if (method, path) == ("POST", f"{job}/buildWithParameters"):
            given = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            parameters = [{"name": name, "value": value} for name, value in given.items()]
            self.runs.append(
                {"id": 39, "actions": [{"parameters": parameters}, {}], "given": given}
            )
            return 201, None, {"Location": f"{self.url}/queue/item/39/"}
        shown = self.runs[::-1] if self.listed else []
        if (method, path) == ("GET", f"{job}/api/json"):
            fields = ("number", "building", "result", "actions")
            return 200, {"builds": [{name: run[name] for name in fields} | {"url": self.url}
                                    for run in shown if "number" in run]}  # fmt: skip
        if (method, path) == ("GET", "/queue/api/json"):
            return 200, {"items": [run for run in shown if "number" not in run]}
        return 404, None

    def told(self) -> list[dict]:
        return [run["given"] for run in self.runs]


class Airflow(Api):
    """Stable REST API v2: a run id that exists is a 409, and a run is found by its id."""

    config = {"kind": "airflow", "dag": "retrain"}
    words = {"running": "running", "done": "success", "broken": "failed", "stopped": "failed"}

    def state(self, word: str) -> None:
        self.runs[-1]["state"] = self.words[word]

    def answer(self, method, path, query, headers, body):
        base = "/api/v2/dags/retrain/dagRuns"
        if (method, path) == ("POST", base):
            told = json.loads(body)
            assert told["logical_date"] is None
            if any(run["dag_run_id"] == told["dag_run_id"] for run in self.runs):
                return 409, {"detail": "DagRun already exists"}
            self.runs.append(
                {"dag_run_id": told["dag_run_id"], "state": "queued", "conf": told["conf"]}
            )
            return 200, self.runs[-1]
        if method == "GET" and path.startswith(f"{base}/"):
            asked = path.removeprefix(f"{base}/")
            found = [run for run in self.runs if run["dag_run_id"] == asked and self.listed]
            return (200, found[0]) if found else (404, {"detail": "not found"})
        return 404, {"detail": "Not Found"}

    def told(self) -> list[dict]:
        return [run["conf"] for run in self.runs]
