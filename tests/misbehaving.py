"""A web server on this machine that does what servers should not: for the tests of downloads. It answers a bounded number of requests and stops with its `with` block."""
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer:
    "How one path answers. `cuts`: bytes sent before the connection is closed, one per request, then no more; `codes`: refusals first; `body` may differ per request."
    def __init__(self, body=b'', ranges=True, cuts=(), codes=(), length=True, kind='application/octet-stream', to=None, tag='"1"', lie=None, chunked=False, late=False, headers=()):
        self.body, self.ranges, self.cuts, self.codes, self.length, self.kind, self.to, self.tag = body, ranges, list(cuts), list(codes), length, kind, to, tag
        self.lie, self.chunked, self.late, self.headers = lie, chunked, late, dict(headers)


class _Handler(BaseHTTPRequestHandler):
    timeout = 5

    def log_message(self, *a): pass
    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        s = self.server.owner
        with s.lock: s.asked.append((self.path, self.headers.get('Range'))); n = len(s.asked)
        self.close_connection = True
        path = re.sub(r'^http://[^/]+', '', self.path)       # as a proxy is asked
        a = s.paths.get(path) or (Answer(to=f'/chain/{n}') if path.startswith('/chain/') else None)
        if n > s.most or a is None: return self.send_error(404 if n <= s.most else 500)
        with s.lock:
            code = a.codes.pop(0) if a.codes else 200
            body = a.body.pop(0) if isinstance(a.body, list) and len(a.body) > 1 else a.body[0] if isinstance(a.body, list) else a.body
        if a.to: self.send_response(302); self.send_header('Location', a.to); self.end_headers(); return
        if code != 200: self.send_response(code); self.send_header('Content-Length', '0'); self.end_headers(); return
        self.answer(s, a, body)

    def answer(self, s, a, body):
        m = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range') or '')
        first, last = (int(m[1]), min(int(m[2]), len(body) - 1)) if m else (0, len(body) - 1)
        part = bool(m) and a.ranges and not (a.late and last > 0)
        data = body[first:last + 1] if part else body
        self.send_response(206 if part else 200)
        if part: self.send_header('Content-Range', a.lie if a.lie and last > 0 else f'bytes {first}-{last}/{len(body)}')
        if a.length and not a.chunked: self.send_header('Content-Length', str(len(data)))
        if a.chunked: self.send_header('Transfer-Encoding', 'chunked')
        if a.tag: self.send_header('ETag', a.tag)
        for k, v in a.headers.items(): self.send_header(k, v)
        self.send_header('Content-Type', a.kind)
        self.end_headers()
        if self.command == 'HEAD': return
        with s.lock: cut = a.cuts.pop(0) if a.cuts and (last > 0 or not m) else None
        data = data if cut is None else data[:cut]
        try: self.wfile.write(b'%x\r\n%s\r\n' % (len(data), data) + (b'0\r\n\r\n' if cut is None else b'') if a.chunked and data else data)
        except OSError: pass


class Server:
    "`with Server({'/a.bin': Answer(b'...')}) as s: s.url('/a.bin')`"
    def __init__(self, paths, most=3000):
        self.paths, self.most, self.asked, self.lock = paths, most, [], threading.Lock()

    def __enter__(self):
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
        self.http.protocol_version, self.http.daemon_threads, self.http.owner = 'HTTP/1.1', True, self
        self.http.RequestHandlerClass.protocol_version = 'HTTP/1.1'
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(5)

    def url(self, path): return f'http://127.0.0.1:{self.http.server_port}{path}'
