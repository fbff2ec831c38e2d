//! The wait for the response head of an attempt that was sent.
//!
//! Not an async function: one that takes a future keeps a second place for it, and moves it there. This was a fortieth
//! of what an exchange cost.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};
use pin_project_lite::pin_project;

use crate::{
    clock::{self, Alarm},
    control::limit::Outcome,
    fault::Unreached,
};

use super::{
    Hold, SendBody, Upload,
    hold::Conn,
    pool::{Failed, Sending, Want},
};

pin_project! {
    /// Waits for the response head of what was sent. Dropped before that, the attempt is abandoned.
    pub(super) struct Answered<F> {
        // Before the hold, so that hyper has let go of the answer when the connection is closed.
        #[pin]
        answer: F,
        // Gone when the wait is over.
        hold: Option<Hold>,
        alarm: Alarm,
        want: Want,
        first_byte_max: Option<Duration>,
        began: Instant,
        // Nothing of it was written: it is sent over another connection.
        elsewhere: Option<Sending>,
    }
}

impl<F> Answered<F> {
    pub(super) fn new(mut hold: Hold, answer: F, want: Want, first_byte_max: Option<Duration>) -> Self {
        let alarm = match &mut hold.conn {
            Some(Conn::Http1(conn)) => std::mem::take(&mut conn.alarm),
            Some(Conn::Http2(_)) | None => Alarm::default(),
        };
        Self { answer, hold: Some(hold), alarm, want, first_byte_max, began: clock::now(), elsewhere: None }
    }
}

impl<F> Future for Answered<F>
where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<SendBody>>>>,
{
    type Output = Result<(Response<Incoming>, Hold), Failed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(elsewhere) = this.elsewhere {
            return elsewhere.as_mut().poll(cx);
        }
        let answer = match this.answer.poll(cx) {
            Poll::Ready(answer) => Ok(answer),
            Poll::Pending => {
                let upload = this.hold.as_ref().and_then(|hold| hold.upload.as_ref());
                Err(ready!(poll_late(*this.began, upload, *this.first_byte_max, this.alarm, cx)))
            }
        };
        let Some(mut hold) = this.hold.take() else {
            // Polled again after it was ready, which nobody may.
            return Poll::Pending;
        };
        if let Some(Conn::Http1(conn)) = &mut hold.conn {
            conn.alarm = std::mem::take(this.alarm);
        }
        let mut failure = match answer {
            Ok(Ok(response)) => {
                hold.heard();
                return Poll::Ready(Ok((response, hold)));
            }
            Ok(Err(failure)) => failure,
            Err(after) => {
                let by_client = hold.upload.as_ref().is_some_and(|upload| upload.fell_silent());
                if let Some(permit) = hold.permit().filter(|_| !by_client) {
                    permit.observe(Outcome::Overloaded, None);
                }
                return Poll::Ready(Err(Failed::Silent { after }));
            }
        };
        let unsent = failure.take_message();
        let error = failure.into_error();
        let (pool, reused) = (Arc::clone(&hold.pool), hold.reused);
        Poll::Ready(Err(match (unsent, hold.failed()) {
            // A fresh one that closes at once says something about the upstream; a kept one does not.
            (Some(request), Some(permit)) if reused => {
                let elsewhere = Box::pin(pool.send_somewhere(request, permit, *this.want, *this.first_byte_max));
                return this.elsewhere.insert(elsewhere).as_mut().poll(cx);
            }
            (Some(request), permit) => {
                Failed::Unsent { request: Box::new(request), permit, why: Unreached::Closed.into() }
            }
            (None, permit) if unprocessed(&error) => Failed::Unprocessed { permit },
            (None, permit) => Failed::Sent { permit, reused, error },
        }))
    }
}

/// Ready when a response head has been waited for in vain, counted from the last byte of the request: with the time
/// that passed.
fn poll_late(
    began: Instant,
    upload: Option<&Arc<Upload>>,
    first_byte_max: Option<Duration>,
    alarm: &mut Alarm,
    cx: &mut Context<'_>,
) -> Poll<Duration> {
    loop {
        // A request that is still being sent is not waited for yet.
        let moved = upload.map_or(began, |upload| upload.moved_at().max(began));
        let silent_by = upload.and_then(|upload| upload.silent_by());
        let now = clock::now();
        if let (Some(by), Some(upload)) = (silent_by, upload)
            && by <= now
        {
            upload.give_up();
            return Poll::Ready(by.saturating_duration_since(moved));
        }
        let answer_by = first_byte_max.map(|max| moved + max);
        if let (Some(by), Some(max)) = (answer_by, first_byte_max)
            && by <= now
        {
            return Poll::Ready(max);
        }
        // Whoever is not waited for now may be, right after.
        let look = upload.and_then(|upload| upload.silence_max()).map(|max| now + max);
        let Some(by) = silent_by.or(look).into_iter().chain(answer_by).min() else { return Poll::Pending };
        ready!(alarm.poll_by(by, cx));
    }
}

/// Whether the upstream said that it did nothing with the request (RFC 9113 8.7). Of a GOAWAY, whatever its reason, h2
/// tells only the streams it left out; the others go on, or break with the connection.
fn unprocessed(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM) || (h2.is_go_away() && h2.is_remote());
        }
        source = error.source();
    }
    false
}
