"""What ports of a machine answer to somebody without the token: python knock.py ADDRESS PORT ... [--token FILE].

Prints `PORT ANSWER` for each: the status of an HTTP request, or of a gRPC call of a service that the port has.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

import grpc

HTTP = {20003: "/get_or_create_runtime_env", 20004: "/api/job_agent/jobs/", 8265: "/api/jobs/"}
CALLS = {
    20000: "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    20001: "/ray.rpc.NodeManagerService/GetSystemConfig",
    20002: "/ray.rpc.ObjectManagerService/Pull",
    20005: "/ray.rpc.ReporterService/GetTraceback",
}
WORKER_CALL = "/ray.rpc.CoreWorkerService/GetCoreWorkerStats"


def knock_http(address: str, port: int, token: str) -> str:
    """Returns the status of an HTTP request."""
    url = f"http://{address}:{port}{HTTP[port]}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = b"" if port == 20003 else None  # this one takes only POST
    request = urllib.request.Request(url, headers=headers, data=body)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)


def knock_grpc(address: str, port: int, token: str) -> str:
    """Returns the status of a gRPC call with an empty message, and what it says."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        call = channel.unary_unary(CALLS.get(port, WORKER_CALL))
        try:
            call(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
        return "OK"


def main(address: str, *words: str) -> None:
    """Prints the answer of each port."""
    token = ""
    if "--token" in words:
        with open(words[-1]) as file:
            token = file.read().strip()
        words = words[:-2]
    for port in map(int, words):
        print(port, (knock_http if port in HTTP else knock_grpc)(address, port, token))


main(*sys.argv[1:])
