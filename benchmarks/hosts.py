"""Many hosts as processes of one machine: they meet, read their rows, gather positions, and notice a lost one.

    python benchmarks/hosts.py --hosts 64

Each process joins as a host of a run does, reads two batches of its own rows, and gathers the positions of all streams.
Their rows are compared with those that one host reads. Then the last process is killed, and the others have to name it.
No model is compiled. Prints JSON lines.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

ROWS = 2  # of each host
CONFIG = "configs/quickstart.py:debug"


def read(hosts: int) -> tuple[dict[int, str], list[list[int]]]:
  """Returns the digest of each row of this host's second batch, and the positions of all streams after it."""
  from lmjax import config, experiment
  from lmjax.parallel.hosts import gather

  batch = ROWS * hosts
  run = experiment.build(config.load(CONFIG, {"batch": str(batch), "mesh.data": "1", "mesh.fsdp": "-1"}))
  rows = run.layout.rows(batch)
  batches = run.data.train(run.tokenizer, batch, 0, None, rows)
  next(batches)
  second = next(batches)
  digests = {row: hashlib.sha256(second["inputs"][i].tobytes()).hexdigest() for i, row in enumerate(rows)}
  positions = gather(batches.positions, batches.streams).tolist()
  batches.close()
  return digests, positions


def host(hosts: int) -> None:
  """The program of one process."""
  from lmjax.parallel import processes

  with processes.joined():
    digests, positions = read(hosts)
    print(json.dumps({"rows": digests, "positions": positions}), flush=True)
    time.sleep(600)  # until a host is lost


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--hosts", type=int, default=64)
  parser.add_argument("--host", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.host:
    host(options.hosts)
    return
  with socket.socket() as one:
    one.bind(("localhost", 0))
    port = one.getsockname()[1]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "LMJAX_COORDINATOR": f"localhost:{port}", "LMJAX_TIMEOUT": "600",
                      "LMJAX_PROCESSES": str(options.hosts), "XLA_FLAGS": "", "NPROC": "1"}  # fmt: skip
  command = [sys.executable, __file__, "--host", "--hosts", str(options.hosts)]
  start = time.monotonic()
  running = [
    subprocess.Popen(command, env=env | {"LMJAX_PROCESS": str(i)}, text=True, stdout=subprocess.PIPE,
                     stderr=subprocess.PIPE)
    for i in range(options.hosts)
  ]  # fmt: skip
  answers = []
  for process in running:
    line = next((line for line in process.stdout or () if line.startswith("{")), None)
    if line is None:
      sys.exit(f"a host ended: {process.communicate()[1][-500:]}")
    answers.append(json.loads(line))
  print(json.dumps({"hosts": options.hosts, "seconds until all have read": round(time.monotonic() - start)}))
  code = f"import json, benchmarks.hosts as h; print(json.dumps(h.read({options.hosts})))"
  alone = subprocess.run([sys.executable, "-c", code], env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True, check=True,
                         capture_output=True)  # fmt: skip
  rows, positions = json.loads(alone.stdout.splitlines()[-1])
  read_rows = {row: digest for answer in answers for row, digest in answer["rows"].items()}
  same = all(answer["positions"] == positions for answer in answers)
  print(json.dumps({"rows": len(read_rows), "as one host": read_rows == rows, "positions as one host": same}))
  running[-1].send_signal(signal.SIGKILL)
  start = time.monotonic()
  ends = [(process.wait(), process.communicate()[1]) for process in running[:-1]]
  named = sum(code == 69 and f"lost process {options.hosts - 1} " in text for code, text in ends)
  print(json.dumps({"named the lost host": named, "of": len(ends), "seconds": round(time.monotonic() - start)}))


if __name__ == "__main__":
  main()
