"""A small stand-in for the Hugging Face hub on this machine's loopback: create, commit, describe, serve. It knows only what posellm asks for."""
import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub(BaseHTTPRequestHandler):
    repos, blobs, asked, token = {}, {}, [], 'hf_test'  # name -> {file: bytes}

    def log_message(self, *_): pass

    def reply(self, code=200, data=b'', head=()):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        for k, v in (('Content-Length', str(len(body))), ('Content-Type', 'application/json'), *head): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def body(self): return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def handle_one(self):
        self.asked.append((self.command, self.path))
        here, path, body = f'http://127.0.0.1:{self.server.server_port}', self.path.split('?')[0], self.body()
        if self.command in ('POST', 'PUT') and '/blob/' not in path and self.headers.get('Authorization') != f'Bearer {self.token}': return self.reply(401, dict(error='Invalid credentials'))
        if path == '/api/whoami-v2': return self.reply(200, dict(name='me', type='user', auth={}))
        if path == '/api/validate-yaml': return self.reply(200, dict(errors=[], warnings=[]))
        if path == '/api/repos/create':
            d = json.loads(body)
            name = f"{d.get('organization') or 'me'}/{d['name']}"
            self.repos.setdefault(name, {})
            return self.reply(200, dict(url=f'{here}/{name}', name=name))
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)/preupload/[^/]+', path):
            return self.reply(200, dict(files=[dict(path=f['path'], uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular', shouldIgnore=False) for f in json.loads(body)['files']]))
        if m := re.fullmatch(r'/([^/]+/[^/]+)\.git/info/lfs/objects/batch', path):
            objects = [dict(oid=o['oid'], size=o['size'], actions=dict(upload=dict(href=f"{here}/blob/{o['oid']}"))) for o in json.loads(body)['objects']]
            return self.reply(200, dict(transfer='basic', objects=objects))
        if path.startswith('/blob/') and self.command == 'PUT':
            self.blobs[path[6:]] = body
            return self.reply(200)
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)/commit/[^/]+', path):
            for line in body.decode().splitlines():
                d = json.loads(line); v = d['value']
                if d['key'] == 'file': self.repos[m[1]][v['path']] = base64.b64decode(v['content'])
                if d['key'] == 'lfsFile': self.repos[m[1]][v['path']] = self.blobs[v['oid']]
            return self.reply(200, dict(commitUrl=f'{here}/{m[1]}/commit/{self.sha(m[1])}', commitOid=self.sha(m[1]), success=True))
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?(/tree/.*)?', path):
            if m[1] not in self.repos: return self.reply(404, dict(error='Repository not found'), [('X-Error-Code', 'RepoNotFound')])
            files = self.repos[m[1]]
            if m[2]: return self.reply(200, [dict(type='file', path=n, size=len(b), oid=hashlib.sha1(b).hexdigest()) for n, b in files.items()])
            card = re.search(r'license: (\S+)', files.get('README.md', b'').decode())
            return self.reply(200, dict(id=m[1], modelId=m[1], sha=self.sha(m[1]), private=True, tags=[], downloads=0, likes=0, cardData=dict(license=card[1] if card else None),
                                        siblings=[dict(rfilename=n, size=len(b), blobId=hashlib.sha1(b).hexdigest()) for n, b in files.items()]))
        if m := re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path):
            data = self.repos.get(m[1], {}).get(m[3])
            if data is None: return self.reply(404, b'', [('X-Error-Code', 'EntryNotFound'), ('X-Repo-Commit', self.sha(m[1]) if m[1] in self.repos else '')])
            head = [('ETag', f'"{hashlib.sha1(data).hexdigest()}"'), ('X-Repo-Commit', self.sha(m[1])), ('Accept-Ranges', 'bytes')]
            return self.reply(200, data, head)
        return self.reply(404, dict(error=f'not known here: {self.command} {path}'))

    def sha(self, repo): return hashlib.sha1(b''.join(n.encode() + b for n, b in sorted(self.repos[repo].items()))).hexdigest()

    do_GET = do_POST = do_PUT = do_HEAD = handle_one


@contextmanager
def fake_hub():
    """Address of a running stand-in, and the class that holds what it was given."""
    kind = type('Hub', (FakeHub,), dict(repos={}, blobs={}, asked=[]))
    server = ThreadingHTTPServer(('127.0.0.1', 0), kind)
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}', kind
    finally: server.shutdown(); server.server_close()
