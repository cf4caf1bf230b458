#!/bin/sh
# /etc/letsencrypt/renewal-hooks/deploy/greensock: what certbot renewed is put where the proxy may read it. Nothing is
# restarted: the next handshakes take the new files up, and until both fit each other they go on with the old ones.
# The key is for root and for a group, which the service is in (SupplementaryGroups): groupadd --system greensock-tls
set -eu
to=${GREENSOCK_TLS:-/etc/greensock/tls}
group=${GREENSOCK_TLS_GROUP:-greensock-tls}
mkdir -p "$to"
for name in privkey.pem fullchain.pem; do
	# Beside it and renamed: nobody reads half a file.
	install -m 0640 -g "$group" "$RENEWED_LINEAGE/$name" "$to/.$name.new"
	mv "$to/.$name.new" "$to/$name"
done
