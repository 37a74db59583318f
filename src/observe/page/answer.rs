//! Answers that are refusals, in words that the page shows.

use super::guard::Refusal;
use crate::error::Error;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    why: String,
}

impl Refused {
    /// There is no such thing.
    pub(super) fn missing(what: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, why: what.into() }
    }

    /// The request asks for something in a way that is not understood.
    pub(super) fn unclear(what: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, why: what.into() }
    }

    /// It cannot be had now.
    pub(super) fn later(what: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, why: what.into() }
    }

    /// The page itself failed.
    pub(super) fn defect(what: &dyn std::fmt::Display) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, why: what.to_string() }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Usage { .. } => StatusCode::BAD_REQUEST,
            Error::Data { .. } | Error::Device { .. } | Error::Stage { .. } | Error::Interrupted { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let why = error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}: {hint}"));
        Self { status, why }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let (status, why) = match refusal {
            Refusal::Token => (StatusCode::UNAUTHORIZED, "the token of this page is needed"),
            Refusal::Origin => (StatusCode::FORBIDDEN, "actions come from the page itself only"),
            Refusal::Host => (StatusCode::FORBIDDEN, "this page is not served under that name"),
        };
        Self { status, why: why.to_owned() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, self.why).into_response()
    }
}
