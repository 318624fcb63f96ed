"""A server that waits for nobody: what takes it half a minute takes this one a moment."""

import sys

from nnsight_remote.server import command, connections, intake, small_bodies

connections.HEAD_SECONDS = small_bodies.SECONDS = intake._CHUNK_SECONDS = 0.5

if __name__ == "__main__":
    sys.exit(command.main())
