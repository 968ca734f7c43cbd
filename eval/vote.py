"""A blind comparison: two videos of one prompt side by side, which is better?

    python eval/vote.py report=runs/evaluation          then open http://localhost:8765

Whose a video is, is hidden, and the sides change. Votes are kept in the report's folder; the next
`python eval/run.py` with the same out= shows what they say. `--help` lists every key.
"""

import json
import sys
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from eval.ballot import Ballots
from recipes.evaluation import Ballot
from recipes.keys import UsageError
from recipes.load import main

PAGE = Path(__file__).parent / "vote.html"
MOST = 10_000  # bytes of a vote


class Handler(BaseHTTPRequestHandler):
    """Answers one request; the ballots are shared by all."""

    def __init__(self, ballots: Ballots, lock: Lock, *rest) -> None:
        self.ballots, self.lock = ballots, lock
        super().__init__(*rest)

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/pair":
            with self.lock:
                pair = self.ballots.next()
            self.answer(json.dumps(asdict(pair)).encode(), "application/json")
        elif self.path.startswith("/video/"):
            with self.lock:
                path = self.ballots.video(self.path.removeprefix("/video/"))
            if path is None or not path.is_file():
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                self.answer(path.read_bytes(), "video/mp4")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        try:
            size = int(self.headers.get("Content-Length", "0"))
            if self.path != "/vote" or size > MOST:
                raise ValueError("no vote")
            told = json.loads(self.rfile.read(size))
            with self.lock:
                self.ballots.vote(told["left"], told["right"], told["choice"])
        except (ValueError, KeyError, TypeError) as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error)[:100])
            return
        except OSError as error:  # the disk is full: the page keeps the pair
            self.send_error(HTTPStatus.INSUFFICIENT_STORAGE, error.strerror)
            return
        self.answer(b"{}", "application/json")

    def answer(self, data: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *rest) -> None:
        """Nothing: the terminal is for the command's own lines."""


def server(config: Ballot) -> ThreadingHTTPServer:
    """Listens on this machine only.

    Raises:
        UsageError: no report, or the port is taken.
    """
    ballots = Ballots(Path(config.report).expanduser(), config.seed, config.voter)
    try:
        return ThreadingHTTPServer(("127.0.0.1", config.port), partial(Handler, ballots, Lock()))
    except OSError as error:
        raise UsageError(f"port={config.port}: {error.strerror}; choose another") from error


def vote(config: Ballot) -> None:
    """The command; ends with Ctrl-C."""
    with server(config) as listening:
        print(f"http://localhost:{listening.server_port}   (Ctrl-C ends)", flush=True)
        listening.serve_forever()


if __name__ == "__main__":
    sys.exit(main(Ballot, vote))
