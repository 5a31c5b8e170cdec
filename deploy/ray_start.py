"""A hook of `ray start` (RAY_START_HOOK), which ray_node.sh sets."""

from ray._private.parameter import RayParams


def close_client_server(params: RayParams, head: bool) -> None:
    """Keeps Ray from starting its client server: `ray start` has no option for that (Ray 2.60), and the driver of a
    sweep refuses addresses `ray://`.
    """
    params.ray_client_server_port = None
