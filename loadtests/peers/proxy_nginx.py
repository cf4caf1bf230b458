"""nginx as a proxy: one worker, kept connections to the upstream, nothing put into files.

With its small default buffers a long download would cost it 2.7 times as much CPU, a short answer as much.
"""

from loadtests.peers.http_common import options
from loadtests.peers.programs import nginx

SERVER = """
    upstream origin {
        server {upstream};
        keepalive 128;
        keepalive_requests 1000000000;
    }
    server {
        {listen}
        location / {
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_max_temp_file_size 0;
            proxy_buffer_size 64k;
            proxy_buffers 8 64k;
            proxy_busy_buffers_size 128k;
            proxy_request_buffering off;
        }
    }
"""

if __name__ == "__main__":
    nginx(lambda directory: SERVER.replace("{upstream}", options().upstream))
