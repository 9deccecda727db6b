//! The hyper service of a connection.

use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};

use super::body::response::ResponseBody;
use super::forwarder::Forwarder;
use super::state::ConnectionState;

/// Creates the service that answers the requests of a connection.
pub(super) fn requests(
    state: &Rc<ConnectionState>,
    forwarder: Rc<Forwarder>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<ResponseBody>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<ResponseBody>, Infallible>> + 'static,
> {
    let state = Rc::clone(state);
    service_fn(move |request| {
        state.activity.used.set(true);
        let (state, forwarder) = (Rc::clone(&state), Rc::clone(&forwarder));
        async move { Ok(forwarder.answer(&state, request).await) }
    })
}
