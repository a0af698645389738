//! Why the queue did not do as asked, in words that hold no secret.

use std::fmt;

use fred::error::{Error, ErrorKind};

/// Why the queue did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// Redis cannot be reached, does not answer or cannot write for now; the same call may succeed
    /// later.
    #[error("Redis is not available")]
    Unavailable(#[source] Reason),
    /// One of our keys holds another type than it must; work that needs it goes on when that is
    /// mended.
    #[error("the Redis key {0}: rename or delete that key")]
    WrongType(String),
    /// Redis refused a command, and will until somebody mends that.
    #[error("Redis refused a command")]
    Refused(#[source] Reason),
    /// The configuration or the server cannot be used.
    #[error("{0}")]
    Setup(String),
}

/// What a server, a library or the system said, without what it repeated of the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The same with the place that it speaks of before it.
    fn at(self, place: &str) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

/// Errors of a server that will do better later: it is loading, failing over, busy or full.
const PASSING: [&str; 9] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "BUSY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
];
/// Errors of a server that will not do better, but another one at the same address may: it has
/// become a replica, or does not know us any more.
const LEADING_NOWHERE: [&str; 4] = ["READONLY", "MASTERDOWN", "UNBLOCKED", "NOAUTH"];

/// Whether a server's error has one of these codes. Redis 6.2 wraps the errors of commands in a
/// script.
fn has_code(error: &Error, codes: &[&str]) -> bool {
    let details = error.details();
    codes.iter().any(|code| details.starts_with(code) || details.contains(&format!("-{code} ")))
}

/// Whether a connection that brought this error is not worth keeping.
pub(super) fn leads_nowhere(error: &Error) -> bool {
    has_code(error, &LEADING_NOWHERE)
}

/// Whether this error is the answer of a server, rather than that there was none.
pub(super) fn is_answer(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Canceled | ErrorKind::Backpressure
    )
}

impl From<Error> for QueueError {
    fn from(error: Error) -> Self {
        // So the client answers commands that wait for a connection when that is made anew.
        const NOT_SENT: [&str; 3] =
            ["Failed to route", "Too many failed write attempts", "channel closed"];
        let details = error.details();
        // A wrapped error of a script of ours, or of one that a server of 6.2 wraps.
        if let Some((_, misuse)) = details.split_once("WRONGTYPE ")
            && misuse.contains("must hold")
        {
            return Self::WrongType(misuse.to_owned());
        }
        let passing =
            has_code(&error, &PASSING) || NOT_SENT.iter().any(|words| details.contains(words));
        match error.kind() {
            ErrorKind::IO
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Backpressure
            | ErrorKind::Sentinel
            | ErrorKind::Routing => Self::Unavailable(Reason::from(&error)),
            _ if passing => Self::Unavailable(Reason::from(&error)),
            _ => Self::Refused(Reason::from(&error)),
        }
    }
}

impl QueueError {
    /// The error of a connection that was not made: says where it should have led.
    pub(super) fn at(self, place: &str) -> Self {
        match self {
            // No time mends a certificate.
            Self::Unavailable(reason) if reason.0.starts_with(UNTRUSTED) => {
                Self::Setup(format!("Redis at {}", reason.at(place)))
            }
            Self::Unavailable(reason) => Self::Unavailable(reason.at(place)),
            Self::Refused(reason) => Self::Refused(reason.at(place)),
            other => other,
        }
    }
}

const UNTRUSTED: &str = "the server's certificate is refused";

impl From<&Error> for Reason {
    fn from(error: &Error) -> Self {
        let details = error.details();
        if *error.kind() == ErrorKind::Timeout || details == "Request timed out." {
            return Self::new("no answer in time");
        }
        if let Some((_, certificate)) = details.split_once("InvalidCertificate(") {
            let why: String = certificate.chars().take_while(|c| c.is_alphanumeric()).collect();
            return Self::new(format!(
                "{UNTRUSTED} ({why}): it must be for this host, and SSL_CERT_FILE must name the \
                 PEM file of its authority unless that is a public one"
            ));
        }
        // The debug output of an error of the system.
        for quoted in ["message: \"", "error: \""] {
            if let Some((_, rest)) = details.split_once(quoted)
                && let Some((message, _)) = rest.split_once('"')
            {
                return Self::new(uncapitalised(message));
            }
        }
        // So 6.2 wraps the error of a command in a script.
        let wrapped =
            details.split_once("@user_script: ").and_then(|(_, rest)| rest.split_once(": -"));
        let details = wrapped.map_or(details, |(_, inner)| inner);
        // A server repeats the arguments of a command that it does not know, and names the place
        // in a script where something failed.
        let kept = [", with args beginning with", " script: ", ". script"]
            .iter()
            .fold(details, |kept, end| kept.split_once(end).map_or(kept, |(before, _)| before));
        Self::new(kept)
    }
}

fn uncapitalised(message: &str) -> String {
    let mut chars = message.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(kind: ErrorKind, details: &'static str) -> String {
        Reason::from(&Error::new(kind, details)).to_string()
    }

    #[test]
    fn a_reason_is_said_in_plain_words() {
        let refused = r#"Os { code: 111, kind: ConnectionRefused, message: "Connection refused" }"#;
        assert_eq!(reason(ErrorKind::IO, refused), "connection refused");
        let unknown = r#"Custom { kind: Uncategorized, error: "failed to lookup address" }"#;
        assert_eq!(reason(ErrorKind::IO, unknown), "failed to lookup address");
        let full = "OOM command not allowed when used memory > 'maxmemory'. script: 6dfb, on \
                    @user_script:3.";
        let said = reason(ErrorKind::Unknown, full);
        assert_eq!(said, "OOM command not allowed when used memory > 'maxmemory'.");
        let wrapped = "ERR Error running script (call to f_0): @user_script:3: @user_script: 3: \
                       -READONLY You can't write against a read only replica.";
        let said = reason(ErrorKind::Unknown, wrapped);
        assert_eq!(said, "READONLY You can't write against a read only replica.");
    }

    #[test]
    fn arguments_that_a_server_repeats_are_left_out() {
        let details = "ERR unknown command 'AUTH', with args beginning with: 'hunter2' ";
        assert_eq!(reason(ErrorKind::Unknown, details), "ERR unknown command 'AUTH'");
        let error = QueueError::from(Error::new(ErrorKind::Unknown, details));
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn a_certificate_that_is_refused_must_be_mended() {
        let details = "Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }";
        let error = QueueError::from(Error::new(ErrorKind::IO, details)).at("h:1 (REDIS_URL)");
        let QueueError::Setup(error) = error else { panic!("{error:?}") };
        assert!(error.starts_with("Redis at h:1 (REDIS_URL): ") && error.contains("SSL_CERT_FILE"));
    }
}
