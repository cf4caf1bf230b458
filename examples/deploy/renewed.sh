#!/bin/sh
# /etc/letsencrypt/renewal-hooks/deploy/greensock: what certbot renewed is put where the proxy may read it. Nothing is
# restarted: the next handshakes take the new files up, and until both fit each other they go on with the old ones.
set -eu
to=${GREENSOCK_TLS:-/etc/greensock/tls}
mkdir -p "$to"
for name in privkey.pem fullchain.pem; do
	# Beside it and renamed: nobody reads half a file. readable by the group that the proxy has, and by nobody else.
	install -m 0640 "$RENEWED_LINEAGE/$name" "$to/.$name.new"
	mv "$to/.$name.new" "$to/$name"
done
