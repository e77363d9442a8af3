//! What goes over the wire between controller and cloud: every call is noted, and any can be held for ever.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// Notes and holds calls.
#[derive(Default)]
pub struct Wire {
    calls: Mutex<Vec<String>>,
    hold: Mutex<Option<Hold>>,
}

struct Hold {
    /// Calls count from the first of this name on.
    from: &'static str,
    begun: bool,
    operation: &'static str,
    /// Calls of `operation` to let through.
    after: usize,
    /// The cloud carries it out first; only its answer is lost.
    carried_out: bool,
    reached: oneshot::Sender<()>,
}

impl Hold {
    /// Whether this call is the one; counts it where it is not.
    fn is_it(&mut self, operation: &str) -> bool {
        self.begun |= self.from == operation;
        if !self.begun || self.operation != operation {
            return false;
        }
        let it = self.after == 0;
        self.after -= usize::from(!it);
        it
    }
}

impl Wire {
    pub fn around(self: Arc<Self>, router: Router) -> Router {
        router.layer(axum::middleware::from_fn_with_state(self, pass))
    }

    /// ECS calls so far, by name.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// ECS calls so far that change something.
    pub fn changes(&self) -> Vec<String> {
        let reads = ["List", "Describe", "Get"];
        self.calls().into_iter().filter(|name| !reads.iter().any(|read| name.starts_with(read))).collect()
    }

    /// From the first call of the name `from` on, the call of `operation` after so many others of it gets no answer;
    /// the receiver hears of it.
    pub fn hold(
        &self,
        from: &'static str,
        operation: &'static str,
        after: usize,
        carried_out: bool,
    ) -> oneshot::Receiver<()> {
        let (reached, receiver) = oneshot::channel();
        *self.hold.lock().unwrap() = Some(Hold { from, begun: false, operation, after, carried_out, reached });
        receiver
    }
}

async fn pass(State(wire): State<Arc<Wire>>, request: Request, next: Next) -> Response {
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(operation) = target.strip_prefix("AmazonEC2ContainerServiceV20141113.").map(str::to_owned) else {
        return next.run(request).await;
    };
    wire.calls.lock().unwrap().push(operation.clone());
    let held = {
        let mut hold = wire.hold.lock().unwrap();
        if hold.as_mut().is_some_and(|hold| hold.is_it(&operation)) { hold.take() } else { None }
    };
    let Some(held) = held else { return next.run(request).await };
    if held.carried_out {
        next.run(request).await;
    }
    held.reached.send(()).expect("the test waits for it");
    std::future::pending().await
}
