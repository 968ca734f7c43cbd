"""One dimension, measured by VBench's own package in an environment of its own.

    <that environment's python> eval/vbench_runner.py job.json

`eval/vbench_package.py` writes the job and reads what the package writes. Nothing of ours is
imported, and nothing of Python beyond 3.8 is used: the package pins old libraries.

A job: `dimension`, `device`, `full_info` (VBench's file, each prompt with its `video_list`),
`videos` (their folder), `out`. What is raised is told in `<out>/<dimension>_error.json`.
"""

import json
import os
import sys
import traceback

sys.path.pop(0)  # this folder: its modules are named like other people's

import torch
import vbench


class Listed(vbench.VBench):
    """Videos are those that the job lists. By itself the package looks for `<prompt>-0` to
    `<prompt>-4`: no sixth seed, no prompt that can't be a file's name."""

    def build_full_info_json(self, *_, **__):
        return self.full_info_dir


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    name = job["dimension"]
    try:
        package = Listed(torch.device(job["device"]), job["full_info"], job["out"])
        package.evaluate(job["videos"], name, dimension_list=[name])
    except Exception as error:
        traceback.print_exc()
        kind = type(error)
        lines = [one.strip() for one in str(error).splitlines() if one.strip()]
        said = {
            "line": ": ".join([kind.__name__, *lines[:1]]).rstrip("."),
            "kinds": [one.__name__ for one in kind.__mro__],
        }
        with open(os.path.join(job["out"], name + "_error.json"), "w", encoding="utf-8") as file:
            json.dump(said, file)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
