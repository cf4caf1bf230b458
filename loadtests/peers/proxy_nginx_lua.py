"""nginx as a proxy, with Lua that edits a field of each request (Debian's libnginx-mod-http-lua)."""

from pathlib import Path

from loadtests.peers.http_common import options
from loadtests.peers.programs import nginx
from loadtests.peers.proxy_nginx import SERVER

EDIT = """
            rewrite_by_lua_block { ngx.req.set_header("X-Edited", "by Lua") }
"""
#: Where Debian has them.
MODULES = Path("/usr/lib/nginx/modules")


def configure(directory: Path) -> str:
    return SERVER.replace("{upstream}", options().upstream).replace("proxy_pass ", EDIT + "proxy_pass ")


if __name__ == "__main__":
    nginx(configure, [MODULES / "ndk_http_module.so", MODULES / "ngx_http_lua_module.so"])
