//! A server of texts on loopback, for recipes at an address. It knows nothing of dsr.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// What there is at a path.
#[derive(Debug, Clone)]
pub(crate) enum Page {
    Text(Vec<u8>),
    /// The way to another address.
    Redirect(String),
}

#[derive(Default)]
struct State {
    pages: BTreeMap<String, Page>,
    asked: Vec<String>,
}

/// The running server; it ends with the test process.
pub(crate) struct WebServer {
    /// `http://127.0.0.1:port`.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl WebServer {
    /// Starts a server that has nothing.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let server = Self { url, state: Arc::clone(&state) };
        thread::spawn(move || listener.incoming().flatten().for_each(|s| answer(&state, s)));
        server
    }

    /// Puts a text at a path; gives its address, with its hash.
    pub(crate) fn put(&self, path: &str, text: impl AsRef<[u8]>) -> String {
        let text = text.as_ref();
        self.set(path, Page::Text(text.to_vec()));
        format!("{}#sha256={}", self.address(path), dsr::hash::sha256(text))
    }

    /// Has a path lead to another address.
    pub(crate) fn redirect(&self, path: &str, to: &str) {
        self.set(path, Page::Redirect(to.to_owned()));
    }

    /// The address of a path, without a hash.
    pub(crate) fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// The paths that were asked for since the last call.
    pub(crate) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).asked)
    }

    fn set(&self, path: &str, page: Page) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pages.insert(path.to_owned(), page);
    }
}

fn answer(state: &Mutex<State>, mut stream: TcpStream) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let (head, body) = match state.pages.get(&path) {
        Some(Page::Text(text)) => ("200 OK".to_owned(), text.clone()),
        Some(Page::Redirect(to)) => (format!("302 Found\r\nLocation: {to}"), Vec::new()),
        None => ("404 Not Found".to_owned(), b"<html>".to_vec()),
    };
    state.asked.push(path);
    let length = body.len();
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    // A client that has gone is its own test's matter.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}
