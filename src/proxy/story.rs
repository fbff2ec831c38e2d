//! The attempts of one exchange: each sent, heard, and made again if that is safe and may help.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, request};
use hyper::body::Incoming;

use crate::{
    clock,
    control::{
        limit::Outcome,
        retry::{Facts, Failure, Verdict},
        signals::Signals,
    },
    fault::{Fault, Unreached},
    gate::Permit,
    provider::{presets::Preset, signals},
    upstream::{Failed, Hold, NotReached, SendBody, Want},
};

use super::{
    Engine,
    answer::{self, Examined},
    head,
    record::Record,
    request_body::RequestBody,
    route::Route,
    seen::SeenAnswer,
    strict,
    turn::{Start, Turn},
};

/// What the client gets in the end.
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(super) enum Answer {
    /// What was read already; the flag says that it failed, and that retries were made and did not help.
    Examined(Box<Examined>, bool),
    /// Everything else.
    Good(Response<Incoming>, Hold, SeenAnswer),
}

/// The attempts of one exchange.
pub(super) struct Story<'a> {
    pub(super) engine: &'a Engine,
    pub(super) route: &'a Route,
    pub(super) head: &'a mut request::Parts,
    /// What is asked for upstream.
    pub(super) target: &'a mut Uri,
    pub(super) turn: Turn,
    pub(super) want: Want,
    pub(super) keyed: bool,
    /// Failed attempts; refusals (429) are not among them.
    pub(super) failures: u32,
    /// Since when the upstream could not be reached, without an answer in between.
    pub(super) unreached_since: Option<Instant>,
    /// The last answer that was not passed on.
    pub(super) last: Option<Box<Examined>>,
    /// The fields of the request, once the first attempt took them along: hyper keeps what it is given. A list, which
    /// takes one piece of memory where a map takes two.
    pub(super) fields: Vec<(HeaderName, HeaderValue)>,
}

impl Story<'_> {
    /// Until there is something to tell the client.
    pub(super) async fn run(&mut self, body: &mut RequestBody, record: &mut Record) -> Result<Answer, Fault> {
        let pool = self.engine.pool(&self.route.connector);
        loop {
            let again = record.attempts > 0;
            let (permit, waited) = match self.turn.at_once() {
                Ok(Start::Leaves(permit)) => (Ok(permit), Duration::ZERO),
                Ok(Start::Waits(place)) => {
                    let began = clock::now();
                    // Boxed: those who need not wait, which is nearly all, should not have to move the room for it.
                    let admitted = Box::pin(self.turn.permit(self.head, self.target, body, place, again));
                    let admitted = self.engine.shared.refuse_waiting.run_until_cancelled(admitted).await;
                    let permit = admitted.unwrap_or(Err(Fault::Draining));
                    (permit, clock::now().saturating_duration_since(began))
                }
                Err(fault) => (Err(fault), Duration::ZERO),
            };
            record.queued += waited;
            record.waited += waited;
            self.turn.gate.metrics.queue_wait.observe(waited.as_secs_f64());
            let permit = permit?;
            let send = body.next().ok_or(Fault::BadBody)?;

            let began = record.leaves();
            let first_byte_max = self.route.settings.deadlines.first_byte;
            let sent = pool.send(self.request(send), permit, self.want, first_byte_max).await;
            record.heard(began, sent.as_ref().ok().map(|(response, _)| response.status()));
            let examining = match sent {
                Ok((response, mut hold)) => match self.heard(&response, &mut hold)? {
                    Heard::Good(seen) => return Ok(Answer::Good(response, hold, seen)),
                    Heard::Suspect(failure) => {
                        Ok(Box::pin(examine(self.route.settings.preset, failure, response, hold)))
                    }
                },
                Err(failed) => Err(Box::new(self.failed(failed, body, record)?)),
            };
            let trouble = match examining {
                Ok(examining) => match examining.await {
                    Examination::Passed(examined) => return Ok(Answer::Examined(examined, false)),
                    Examination::Trouble(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            record.failed(trouble.failure);
            let verdict = self.verdict(&trouble, body.is_replayable(), began);
            let Verdict::Retry { after } = verdict else {
                return match trouble.cause {
                    Cause::Answer(answer) => Ok(Answer::Examined(answer, record.attempts > 1)),
                    Cause::Fault(fault) => Err(fault),
                };
            };
            self.turn.gate.metrics.retried(trouble.failure);
            tracing::debug!(
                upstream = self.turn.gate.upstream(),
                account = self.turn.gate.account(),
                reason = trouble.failure.label(),
                after_ms = after.as_millis() as u64,
                "attempt is made again"
            );
            if let Cause::Answer(answer) = trouble.cause {
                self.last = answer.set_aside().map(Box::new);
            }
            if !after.is_zero() {
                let refused = self.engine.shared.refuse_waiting.run_until_cancelled(tokio::time::sleep(after));
                Box::pin(refused).await.ok_or(Fault::Draining)?;
                record.waited += after;
            }
        }
    }

    /// What the next attempt sends.
    fn request(&mut self, body: SendBody) -> Request<SendBody> {
        let mut request = Request::new(body);
        request.method_mut().clone_from(&self.head.method);
        request.uri_mut().clone_from(self.target);
        *request.headers_mut() = if self.fields.is_empty() {
            self.fields.extend(self.head.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            std::mem::take(&mut self.head.headers)
        } else {
            self.asked()
        };
        request
    }

    /// The fields of a request that was sent.
    fn asked(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.fields.len());
        for (name, value) in &self.fields {
            headers.append(name, value.clone());
        }
        headers
    }

    /// A response head arrived.
    fn heard(&self, response: &Response<Incoming>, hold: &mut Hold) -> Result<Heard, Fault> {
        let status = response.status();
        if let Some(permit) = hold.permit() {
            permit.gate().metrics.first_byte.observe(permit.age().as_secs_f64());
        }
        let seen = SeenAnswer::of(response.headers());
        if !strict::answer(response, seen, || self.asked()) {
            return Err(Fault::UpstreamProtocol);
        }
        self.route.note_balance(&self.turn.gate, response.headers());
        let said = match seen.limits {
            true => signals::from_head(self.route.settings.preset, status, response.headers(), SystemTime::now),
            false => Signals::default(),
        };
        let failure = answer::failure_of(status, &said);
        if failure.is_some() || answer::may_refuse(response, &said) {
            return Ok(Heard::Suspect(failure));
        }
        if let Some(permit) = hold.permit() {
            permit.observe(answer::outcome_of(status), Some((status.as_u16(), &said)));
        }
        Ok(Heard::Good(seen))
    }

    /// No response head arrived.
    fn failed(&self, failed: Failed, body: &mut RequestBody, record: &mut Record) -> Result<Trouble, Fault> {
        let observe = |permit: Option<Permit>, outcome| {
            if let Some(mut permit) = permit {
                permit.observe(outcome, None);
            }
        };
        let (failure, reused, fault) = match failed {
            Failed::Unsent { request, permit, why: NotReached { why, said } } => {
                record.reason = said;
                body.give_back(request.into_body());
                // A name that does not resolve and a certificate that does not verify are no matter of load.
                let load = matches!(why, Unreached::Connect | Unreached::Timeout);
                observe(permit, if load { Outcome::Overloaded } else { Outcome::Ignored });
                (Failure::Unreached, false, Fault::Unreachable(why))
            }
            Failed::Unprocessed { permit } => {
                observe(permit, Outcome::Ignored);
                (Failure::Unreached, false, Fault::UpstreamProtocol)
            }
            Failed::Sent { permit, reused, error } => {
                observe(permit, Outcome::Ignored);
                if let Some(upload) = body.upload().filter(|upload| upload.has_failed()) {
                    return Err(if upload.was_too_long() { Fault::LongBody } else { Fault::BadBody });
                }
                tracing::debug!(upstream = self.turn.gate.upstream(), %error, "attempt broke");
                (Failure::Broken, reused, Fault::UpstreamProtocol)
            }
            Failed::Silent { .. } if body.upload().is_some_and(|upload| upload.fell_silent()) => {
                return Err(Fault::RequestTimeout);
            }
            Failed::Silent { after } => (Failure::TimedOut, false, Fault::FirstByteTimeout(after)),
        };
        Ok(Trouble { failure, signals: Signals::default(), reused, cause: Cause::Fault(fault) })
    }

    /// `began`: when the attempt did.
    fn verdict(&mut self, trouble: &Trouble, replayable: bool, began: Instant) -> Verdict {
        if !matches!(trouble.failure, Failure::Bounced(_)) {
            self.failures += 1;
        }
        let mut remaining = self.turn.remaining();
        if let Cause::Fault(Fault::Unreachable(_)) = trouble.cause {
            // An upstream that is away is away for all: its clients are told while they still can turn elsewhere.
            let since = *self.unreached_since.get_or_insert(began);
            let connect_max = self.route.settings.deadlines.connect;
            remaining = remaining.min(connect_max.saturating_sub(clock::now().saturating_duration_since(since)));
        } else {
            self.unreached_since = None;
        }
        self.turn.gate.verdict(&Facts {
            failure: trouble.failure,
            replayable,
            idempotent: head::is_idempotent(&self.head.method),
            keyed: self.keyed,
            reused: trouble.reused,
            failures: self.failures,
            signals: trouble.signals,
            remaining,
        })
    }
}

/// Reads the body of an answer that may lead to another attempt. `failure`: what its head says.
async fn examine(preset: Preset, failure: Option<Failure>, response: Response<Incoming>, hold: Hold) -> Examination {
    let reused = hold.reused();
    let Some(examined) = Examined::read(failure, preset, response, hold).await else {
        return Examination::Trouble(Box::new(Trouble {
            failure: Failure::Broken,
            signals: Signals::default(),
            reused,
            cause: Cause::Fault(Fault::UpstreamProtocol),
        }));
    };
    let examined = Box::new(examined);
    match examined.failure {
        None => Examination::Passed(examined),
        Some(failure) => Examination::Trouble(Box::new(Trouble {
            failure,
            signals: examined.signals,
            reused: false,
            cause: Cause::Answer(examined),
        })),
    }
}

/// What a response head tells.
enum Heard {
    /// The answer is passed on.
    Good(SeenAnswer),
    /// It may lead to another attempt: the failure it is, if its head says so.
    Suspect(Option<Failure>),
}

/// What the body of such an answer tells.
enum Examination {
    Passed(Box<Examined>),
    Trouble(Box<Trouble>),
}

/// An attempt that may be made again.
struct Trouble {
    failure: Failure,
    signals: Signals,
    reused: bool,
    cause: Cause,
}

/// What the client gets if it is not made again.
enum Cause {
    Answer(Box<Examined>),
    Fault(Fault),
}
