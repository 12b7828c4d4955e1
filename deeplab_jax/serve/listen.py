"""The socket that a server listens on; importing this loads no JAX."""

import errno
import socket

from deeplab_jax.errors import ConfigError, ResourceError


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address: a second server is refused before it loads.

    Raises:
      ConfigError: there is no such address here.
      ResourceError: the port is taken, or not permitted.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError("--host", f"{host} is no address ({error})", "use 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:  # whatever the port
            what = f"{host} is no address of this machine"
            fix = "use 127.0.0.1, or 0.0.0.0 for all of this machine's"
            raise ConfigError("--host", what, fix) from error
        what = f"cannot be used on {host} ({(error.strerror or str(error)).lower()})"
        fix = "choose another --port; 0 takes a free one"
        raise ResourceError(f"--port {port}", what, fix) from error
    return listener
