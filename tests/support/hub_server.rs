//! A hub on loopback that answers as the real one does: its API, redirects, headers and refusals.
//!
//! Files marked large lie on a second port, the storage host, to which the hub redirects. All
//! requests are kept, so that a test can say what was asked and who was shown the token. Faults
//! (cut connections, busy answers, damage) are ordered by the test. It knows nothing of dsr.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// A repository to serve, at one commit that `main` stands at.
#[derive(Debug, Clone)]
pub(crate) struct HubRepo {
    pub(crate) commit: String,
    pub(crate) gated: bool,
    pub(crate) private: bool,
    /// The content of each file, and whether it is large.
    pub(crate) files: BTreeMap<String, (Vec<u8>, bool)>,
}

/// What goes wrong on the way to a file, in the order of the downloads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mishap {
    /// The connection closes after this many bytes of the body.
    CutAfter(usize),
    /// Status 503.
    Busy,
    /// The first byte arrives changed.
    Damage,
}

#[derive(Default)]
struct State {
    repos: BTreeMap<String, HubRepo>,
    mishaps: VecDeque<Mishap>,
    requests: Vec<Request>,
    storage_requests: Vec<Request>,
    page_size: usize,
    token: Option<String>,
}

/// The running server; it ends with the test process.
pub(crate) struct HubServer {
    /// The endpoint: `http://127.0.0.1:port`.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl HubRepo {
    /// A repository with these files, each a path and its content.
    pub(crate) fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let commit = "c0ffee".repeat(7)[..40].to_owned();
        let files = files.into_iter().map(|(p, c)| (p.to_owned(), (c.to_owned(), false))).collect();
        Self { commit, gated: false, private: false, files }
    }

    /// Adds a file that lies on the storage host.
    pub(crate) fn large(mut self, path: &str, content: &[u8]) -> Self {
        self.files.insert(path.to_owned(), (content.to_owned(), true));
        self
    }
}

impl HubServer {
    /// Starts a hub with no repositories.
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State { page_size: 1000, ..State::default() }));
        let (hub, storage) = (listener(), listener());
        let storage_url = url(&storage);
        let server = Self { url: url(&hub), state: Arc::clone(&state) };
        let for_storage = Arc::clone(&state);
        serve(storage, move |request, reply| {
            lock(&for_storage).storage_requests.push(request.clone());
            let (repo, path) = request.path[1..].split_once("/blob/").unwrap();
            let content = lock(&for_storage).repos[repo].files[path].0.clone();
            send_file(&for_storage, reply, request, &content, &[("ETag", "\"storage\"".into())]);
        });
        serve(hub, move |request, reply| {
            lock(&state).requests.push(request.clone());
            answer(&state, &storage_url, request, reply);
        });
        server
    }

    /// Adds or replaces a repository; `id` is `datasets/Owner/name` or `models/Owner/name`.
    pub(crate) fn put(&self, id: &str, repo: HubRepo) {
        lock(&self.state).repos.insert(id.to_owned(), repo);
    }

    /// Orders faults for the next downloads, the first for the first.
    pub(crate) fn order(&self, mishaps: impl IntoIterator<Item = Mishap>) {
        lock(&self.state).mishaps = mishaps.into_iter().collect();
    }

    /// The token that opens gated and private repositories.
    pub(crate) fn accept_token(&self, token: &str) {
        lock(&self.state).token = Some(token.to_owned());
    }

    /// How many files the API lists on one page.
    pub(crate) fn page_size(&self, files: usize) {
        lock(&self.state).page_size = files;
    }

    /// The requests to the hub since the last call.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.state).requests)
    }

    /// The requests to the storage host since the last call.
    pub(crate) fn take_storage_requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.state).storage_requests)
    }
}

/// The way back to the client; an answer to HEAD has no body.
struct Reply<'a> {
    stream: &'a mut TcpStream,
    head_only: bool,
}

impl Reply<'_> {
    fn head(&mut self, status: u16, headers: &[(&str, String)], length: usize) {
        let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        // A client that has gone is its own test's matter.
        let _ = self.stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n").as_bytes());
    }

    fn body(&mut self, body: &[u8]) {
        if !self.head_only {
            let _ = self.stream.write_all(body);
        }
    }

    fn send(&mut self, status: u16, headers: &[(&str, String)], body: &[u8]) {
        self.head(status, headers, body.len());
        self.body(body);
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn url(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().unwrap())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

fn serve(listener: TcpListener, answer: impl Fn(&Request, &mut Reply<'_>) + Send + Sync + 'static) {
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                if let Some(request) = read_request(&stream) {
                    let head_only = request.method == "HEAD";
                    answer(&request, &mut Reply { stream: &mut stream, head_only });
                }
            });
        }
    });
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let line = lines.next()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Some(Request { method, path, headers })
}

fn answer(state: &Mutex<State>, storage: &str, request: &Request, reply: &mut Reply<'_>) {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let Some((id, what, rest)) = parse(path) else {
        return refuse(reply, 404, "EntryNotFound", "Not Found");
    };
    let repo = lock(state).repos.get(&id).cloned();
    let token = lock(state).token.clone();
    let shown = request.headers.get("authorization").and_then(|h| h.strip_prefix("Bearer "));
    let known = token.is_some() && shown == token.as_deref();
    let Some(repo) = repo.filter(|r| known || !r.private) else {
        return refuse(reply, 401, "RepoNotFound", "Invalid username or password.");
    };
    match what {
        "revision" if rest == "main" || rest == repo.commit => {
            let siblings: Vec<Value> =
                repo.files.keys().map(|p| json!({ "rfilename": p })).collect();
            let info = json!({ "id": id, "sha": repo.commit, "siblings": siblings });
            reply.send(200, &[], info.to_string().as_bytes());
        }
        "revision" => refuse(reply, 404, "RevisionNotFound", &format!("Invalid rev id: {rest}")),
        "tree" => send_tree(state, &repo, request, query, reply),
        _ if repo.gated && !known => {
            let status = if shown.is_some() { 403 } else { 401 };
            refuse(reply, status, "GatedRepo", "Access to this repository is restricted");
        }
        "resolve" => resolve(&id, &repo, rest, storage, reply),
        "resolve-cache" => {
            let file = rest.split_once('/').unwrap().1;
            let content = &repo.files[file].0;
            let etag = ("ETag", format!("\"{}\"", git_oid(content)));
            let commit = ("X-Repo-Commit", repo.commit.clone());
            send_file(state, reply, request, content, &[etag, commit]);
        }
        _ => refuse(reply, 404, "EntryNotFound", "Entry not found"),
    }
}

/// The repository, the operation and the rest of a path of the hub.
fn parse(path: &str) -> Option<(String, &str, &str)> {
    let path = path.strip_prefix('/')?;
    let (path, cached) = match path.strip_prefix("api/resolve-cache/") {
        Some(path) => (path, true),
        None => (path.strip_prefix("api/").unwrap_or(path), false),
    };
    let (kind, path) = match path.split_once('/')? {
        (kind @ ("datasets" | "models"), path) => (kind, path),
        _ => ("models", path),
    };
    let mut parts = path.splitn(4, '/');
    let (owner, name) = (parts.next()?, parts.next()?);
    let id = format!("{kind}/{owner}/{name}");
    if cached {
        let at = path.match_indices('/').nth(1)?.0 + 1;
        return Some((id, "resolve-cache", &path[at..]));
    }
    Some((id, parts.next()?, parts.next()?))
}

fn send_tree(
    state: &Mutex<State>,
    repo: &HubRepo,
    request: &Request,
    query: &str,
    reply: &mut Reply<'_>,
) {
    let start = query.split_once("cursor=").map_or(0, |(_, c)| c.parse().unwrap());
    let size = lock(state).page_size;
    let page: Vec<Value> = repo.files.iter().skip(start).take(size).map(entry).collect();
    let mut headers = Vec::new();
    if start + size < repo.files.len() {
        let (host, path) = (&request.headers["host"], request.path.split('?').next().unwrap());
        let next = format!("http://{host}{path}?recursive=true&cursor={}", start + size);
        headers.push(("Link", format!("<{next}>; rel=\"next\"")));
    }
    reply.send(200, &headers, Value::from(page).to_string().as_bytes());
}

fn entry((path, (content, large)): (&String, &(Vec<u8>, bool))) -> Value {
    let size = content.len();
    let mut entry = json!({ "type": "file", "path": path, "size": size, "oid": git_oid(content) });
    if *large {
        // Of a large file git holds a pointer only.
        entry["oid"] = json!(git_oid(sha256(content).as_bytes()));
        entry["lfs"] = json!({ "oid": sha256(content), "size": size, "pointerSize": 134 });
    }
    entry
}

fn resolve(id: &str, repo: &HubRepo, rest: &str, storage: &str, reply: &mut Reply<'_>) {
    let (commit, file) = rest.split_once('/').unwrap();
    let found = repo.files.get(file).filter(|_| commit == repo.commit || commit == "main");
    let Some((content, large)) = found else {
        return refuse(reply, 404, "EntryNotFound", "Entry not found");
    };
    let mut headers = vec![("X-Repo-Commit", repo.commit.clone())];
    if *large {
        headers.push(("X-Linked-Etag", format!("\"{}\"", sha256(content))));
        headers.push(("X-Linked-Size", content.len().to_string()));
        headers.push(("Location", format!("{storage}/{id}/blob/{file}")));
        reply.send(302, &headers, b"");
    } else {
        headers.push(("X-Linked-Etag", format!("\"{}\"", git_oid(content))));
        headers.push(("X-Linked-Size", content.len().to_string()));
        headers.push(("Location", format!("/api/resolve-cache/{id}/{}/{file}", repo.commit)));
        reply.send(307, &headers, b"");
    }
}

fn send_file(
    state: &Mutex<State>,
    reply: &mut Reply<'_>,
    request: &Request,
    content: &[u8],
    headers: &[(&str, String)],
) {
    let mishap = lock(state).mishaps.pop_front();
    let range = request.headers.get("range").and_then(|r| r.strip_prefix("bytes="));
    let start: usize = range.map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
    let (mut body, mut headers) = (content[start..].to_vec(), headers.to_vec());
    if range.is_some() {
        let end = content.len() - 1;
        headers.push(("Content-Range", format!("bytes {start}-{end}/{}", content.len())));
    }
    let status = if range.is_some() { 206 } else { 200 };
    match mishap {
        Some(Mishap::Busy) => reply.send(503, &[], b"busy"),
        Some(Mishap::CutAfter(bytes)) => {
            reply.head(status, &headers, body.len());
            reply.body(&body[..bytes]);
        }
        Some(Mishap::Damage) => {
            body[0] ^= 1;
            reply.send(status, &headers, &body);
        }
        None => reply.send(status, &headers, &body),
    }
}

fn refuse(reply: &mut Reply<'_>, status: u16, code: &str, message: &str) {
    let headers = [("X-Error-Code", code.to_owned()), ("X-Error-Message", message.to_owned())];
    reply.send(status, &headers, json!({ "error": message }).to_string().as_bytes());
}

fn git_oid(content: &[u8]) -> String {
    let object = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
    hex(&Sha1::digest(object))
}

fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
