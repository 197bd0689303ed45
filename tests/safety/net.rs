//! Hosts: those that a recipe was not given, and redirects to private addresses.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

use dsr::permission::Grants;

use super::*;

/// A hub that answers everything with a redirect; gives its address.
fn redirecting(to: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 307 X\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

fn code(recipe: &str, endpoint: &str, grants: Grants) -> Code {
    let place = Place::new();
    let (home, endpoint) = (place.home.path().display().to_string(), endpoint.to_owned());
    let ended = place.run(recipe, |host| {
        host.workspace.rights.grants = grants;
        host.workspace.rights.env = Box::new(move |name| match name {
            "HOME" => Some(home.clone()),
            "HF_ENDPOINT" => Some(endpoint.clone()),
            _ => None,
        });
    });
    ended.unwrap_err().code()
}

#[test]
fn there_is_no_network_without_a_grant() {
    let hub = "https://huggingface.co";
    for recipe in ["load_model(\"O/m\");", "dataset(\"O/d\");", "tokenizer(\"O/t\");"] {
        assert_eq!(code(recipe, hub, Grants::default()), Code::Permission, "{recipe}");
        let denied = Grants { deny_net: Scope::All, ..Grants::all() };
        assert_eq!(code(recipe, hub, denied), Code::Permission, "{recipe}");
        let other =
            Grants { net: Scope::These(vec!["example.org".to_owned()]), ..Grants::default() };
        assert_eq!(code(recipe, hub, other), Code::Permission, "{recipe}");
    }
}

#[test]
fn redirects_do_not_lead_to_private_addresses() {
    for to in [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://localhost:1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://0.0.0.0/",
        "http://2130706433/",
    ] {
        let hub = redirecting(to);
        assert_eq!(code("load_model(\"O/m\");", &hub, Grants::all()), Code::Permission, "{to}");
        let named = Grants { net: Scope::These(vec!["127.0.0.1".to_owned()]), ..Grants::default() };
        assert_eq!(code("load_model(\"O/m\");", &hub, named), Code::Permission, "{to}");
    }
}
