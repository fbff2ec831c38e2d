//! The queue of one account: bounded, round robin over flows, first come first served inside a flow and lane.
//!
//! A waiter is ordered by its [`Place`], given when its exchange first came. One that was admitted, refused by the
//! upstream and comes back keeps its place, so it stands before everybody of its flow who came later.
//!
//! Where budgets are per model, those who wait for one model must not stand in the way of the others: each model is a
//! **lane**, and lanes that cannot move are passed over.

use std::collections::{BTreeMap, VecDeque};

/// Lanes told apart; beyond it new ones are taken together in lane 0. Clients choose the names of models.
const LANES_MAX: usize = 32;

/// The unit of fairness inside an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// When an exchange first came, as a number that only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(pub u64);

/// What waits for the same budgets, say a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lane(pub u64);

/// A place in the queue, to leave it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    flow: FlowId,
    lane: Lane,
    place: Place,
}

impl Ticket {
    /// The lane it is in.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.lane
    }
}

/// How many may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depths {
    /// Over all flows.
    pub total_max: usize,
    /// In one flow.
    pub per_flow_max: usize,
}

/// Why a newcomer may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The flow is full, others may have room.
    Flow,
    /// The whole queue is full.
    Total,
}

/// The waiters of one account. `W` is whatever the caller needs to wake one.
#[derive(Debug)]
pub struct FairQueue<W> {
    // Ordered: to hash a number safely takes longer than to find it among a thousand.
    flows: BTreeMap<FlowId, Flow<W>>,
    /// Flows that have waiters, each exactly once, in the order of their turns.
    turns: VecDeque<FlowId>,
    /// Lanes that have waiters, and how many.
    lanes: Vec<(Lane, usize)>,
    len: usize,
    depths: Depths,
}

/// The waiters of one flow: no lane is empty.
#[derive(Debug)]
struct Flow<W> {
    lanes: Vec<(Lane, BTreeMap<Place, W>)>,
    len: usize,
}

impl<W> Flow<W> {
    /// The oldest of those not in `shut`.
    fn head(&self, shut: &[Lane]) -> Option<(Lane, Place, &W)> {
        let open = self.lanes.iter().filter(|(lane, _)| !shut.contains(lane));
        let heads = open.filter_map(|(lane, waiters)| waiters.first_key_value().map(|(place, w)| (*lane, *place, w)));
        heads.min_by_key(|(_, place, _)| *place)
    }

    fn remove(&mut self, lane: Lane, place: Place) -> Option<W> {
        let at = self.lanes.iter().position(|(known, _)| *known == lane)?;
        let (_, waiters) = self.lanes.get_mut(at)?;
        let waiter = waiters.remove(&place)?;
        if waiters.is_empty() {
            self.lanes.swap_remove(at);
        }
        self.len -= 1;
        Some(waiter)
    }
}

impl<W> FairQueue<W> {
    /// An empty queue.
    #[must_use]
    pub fn new(depths: Depths) -> Self {
        Self { flows: BTreeMap::new(), turns: VecDeque::new(), lanes: Vec::new(), len: 0, depths }
    }

    /// Everybody who waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Changes the bounds. Those who wait stay.
    pub fn set_depths(&mut self, depths: Depths) {
        self.depths = depths;
    }

    /// Whether a newcomer of `flow` may wait.
    pub fn room(&self, flow: FlowId) -> Result<(), Full> {
        if self.len >= self.depths.total_max {
            return Err(Full::Total);
        }
        if self.flows.get(&flow).map_or(0, |flow| flow.len) >= self.depths.per_flow_max {
            return Err(Full::Flow);
        }
        Ok(())
    }

    /// How many lanes have waiters.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Joins at `place`, whether there is room or not: one that comes back after a refusal was counted already and
    /// must not be lost. Newcomers are checked with [`room`](Self::room) first.
    pub fn push(&mut self, flow: FlowId, lane: Lane, place: Place, waiter: W) -> Ticket {
        let lane = self.count_in(lane);
        let waiting = self.flows.entry(flow).or_insert_with(|| Flow { lanes: Vec::new(), len: 0 });
        if waiting.len == 0 {
            self.turns.push_back(flow);
        }
        waiting.len += 1;
        let former = match waiting.lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, waiters)) => waiters.insert(place, waiter),
            None => {
                waiting.lanes.push((lane, BTreeMap::from([(place, waiter)])));
                None
            }
        };
        debug_assert!(former.is_none(), "place {} is taken", place.0);
        self.len += 1;
        Ticket { flow, lane, place }
    }

    /// Whose turn is next, those in the lanes of `shut` passed over.
    #[must_use]
    pub fn head(&self, shut: &[Lane]) -> Option<(Ticket, &W)> {
        self.turns.iter().find_map(|flow| {
            let (lane, place, waiter) = self.flows.get(flow)?.head(shut)?;
            Some((Ticket { flow: *flow, lane, place }, waiter))
        })
    }

    /// Takes out all of a lane that `gone` says yes to, in no particular order.
    pub fn take_where(&mut self, lane: Lane, mut gone: impl FnMut(&W) -> bool) -> Vec<W> {
        let mut taken = Vec::new();
        for flow in self.flows.values_mut() {
            let waiters = flow.lanes.iter().filter(|(known, _)| *known == lane).flat_map(|(_, waiters)| waiters);
            let places: Vec<Place> = waiters.filter(|(_, waiter)| gone(waiter)).map(|(place, _)| *place).collect();
            taken.extend(places.into_iter().filter_map(|place| flow.remove(lane, place)));
        }
        self.flows.retain(|_, flow| flow.len > 0);
        self.turns.retain(|flow| self.flows.contains_key(flow));
        self.len -= taken.len();
        self.count_out(lane, taken.len());
        taken
    }

    /// Leaves. `None`: was not waiting any more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<W> {
        let flow = self.flows.get_mut(&ticket.flow)?;
        let waiter = flow.remove(ticket.lane, ticket.place)?;
        self.len -= 1;
        if flow.len == 0 {
            self.flows.remove(&ticket.flow);
            self.turns.retain(|flow| *flow != ticket.flow);
        }
        self.count_out(ticket.lane, 1);
        Some(waiter)
    }

    /// Takes out one that [`head`](Self::head) named: its flow has had its turn.
    pub fn take(&mut self, ticket: Ticket) -> Option<W> {
        let flow = self.flows.get_mut(&ticket.flow)?;
        let waiter = flow.remove(ticket.lane, ticket.place)?;
        self.len -= 1;
        let is_empty = flow.len == 0;
        if let Some(turn) = self.turns.iter().position(|flow| *flow == ticket.flow) {
            self.turns.remove(turn);
        }
        if is_empty {
            self.flows.remove(&ticket.flow);
        } else {
            self.turns.push_back(ticket.flow);
        }
        self.count_out(ticket.lane, 1);
        Some(waiter)
    }

    fn count_in(&mut self, lane: Lane) -> Lane {
        let known = self.lanes.iter().position(|(known, _)| *known == lane);
        let lane = if known.is_none() && self.lanes.len() >= LANES_MAX { Lane(0) } else { lane };
        match self.lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, waiters)) => *waiters += 1,
            None => self.lanes.push((lane, 1)),
        }
        lane
    }

    fn count_out(&mut self, lane: Lane, gone: usize) {
        self.lanes.retain_mut(|(known, waiters)| {
            if *known == lane {
                *waiters -= gone;
            }
            *waiters > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LANE: Lane = Lane(7);

    impl FairQueue<u64> {
        fn pop(&mut self) -> Option<u64> {
            let (ticket, _) = self.head(&[])?;
            self.take(ticket)
        }
    }

    fn queue() -> FairQueue<u64> {
        FairQueue::new(Depths { total_max: 8, per_flow_max: 4 })
    }

    #[test]
    fn a_flow_is_served_in_the_order_of_arrival_and_flows_take_turns() {
        let mut queue = queue();
        for (place, flow) in [1, 1, 1, 2, 3].into_iter().enumerate() {
            queue.push(FlowId(flow), LANE, Place(place as u64), place as u64);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [0, 3, 4, 1, 2]);
    }

    #[test]
    fn one_that_comes_back_stands_at_its_old_place() {
        let mut queue = queue();
        for place in 0..3 {
            queue.push(FlowId(1), LANE, Place(place), place);
        }
        assert_eq!(queue.pop(), Some(0));
        queue.push(FlowId(1), LANE, Place(0), 0);
        assert_eq!(queue.pop(), Some(0));
        assert_eq!(queue.pop(), Some(1));
    }

    #[test]
    fn newcomers_are_told_which_bound_they_met() {
        let mut queue = queue();
        for place in 0..4 {
            queue.push(FlowId(1), LANE, Place(place), place);
        }
        assert_eq!(queue.room(FlowId(1)), Err(Full::Flow));
        assert_eq!(queue.room(FlowId(2)), Ok(()));
        for place in 4..8 {
            queue.push(FlowId(2), LANE, Place(place), place);
        }
        assert_eq!(queue.room(FlowId(3)), Err(Full::Total));
    }

    #[test]
    fn a_ticket_leaves_once() {
        let mut queue = queue();
        let ticket = queue.push(FlowId(1), LANE, Place(0), 0);
        assert_eq!(queue.remove(ticket), Some(0));
        assert_eq!(queue.remove(ticket), None);
        assert!(queue.is_empty());
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn a_lane_that_is_shut_is_passed_over_and_its_flow_keeps_its_turn() {
        let mut queue = queue();
        for (place, (flow, lane)) in [(1, 1), (1, 2), (2, 2), (1, 1)].into_iter().enumerate() {
            queue.push(FlowId(flow), Lane(lane), Place(place as u64), place as u64);
        }
        assert_eq!((queue.lanes(), queue.head(&[]).map(|(_, w)| *w)), (2, Some(0)));
        let (ticket, _) = queue.head(&[Lane(1)]).unwrap();
        assert_eq!((ticket.lane(), queue.take(ticket)), (Lane(2), Some(1)));
        assert_eq!(queue.head(&[Lane(1)]).map(|(_, w)| *w), Some(2), "now it is the other flow's turn");
        assert!(queue.head(&[Lane(1), Lane(2)]).is_none());
        assert_eq!(queue.take_where(Lane(1), |w| *w == 3), [3]);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!((order, queue.lanes()), (vec![2, 0], 0));
    }

    #[test]
    fn lanes_are_bounded_in_number_and_nobody_is_lost() {
        let mut queue = FairQueue::new(Depths { total_max: 1000, per_flow_max: 1000 });
        for place in 0..500 {
            queue.push(FlowId(place % 3), Lane(place + 1), Place(place), place);
        }
        assert!(queue.lanes() <= LANES_MAX + 1);
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), 500);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Push { flow: u8 },
        Pop,
        Remove { nth: usize },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => (0u8..4).prop_map(|flow| Op::Push { flow }),
            2 => Just(Op::Pop),
            1 => (0usize..64).prop_map(|nth| Op::Remove { nth }),
        ]
    }

    proptest! {
        /// The reference model is one list per flow and a list of turns.
        #[test]
        fn it_behaves_like_the_plain_model(ops in proptest::collection::vec(op(), 1..200)) {
            let mut queue = FairQueue::new(Depths { total_max: 1000, per_flow_max: 1000 });
            let mut tickets: Vec<(Ticket, u64)> = Vec::new();
            let mut lists: Vec<(u64, Vec<u64>)> = Vec::new();
            let mut next = 0;
            for op in ops {
                match op {
                    Op::Push { flow } => {
                        let flow = u64::from(flow);
                        tickets.push((queue.push(FlowId(flow), Lane(next % 3), Place(next), next), next));
                        match lists.iter_mut().find(|(id, _)| *id == flow) {
                            Some((_, list)) => list.push(next),
                            None => lists.push((flow, vec![next])),
                        }
                        next += 1;
                    }
                    Op::Pop => {
                        let want = if lists.is_empty() { None } else {
                            let (flow, mut list) = lists.remove(0);
                            let first = list.remove(0);
                            if !list.is_empty() { lists.push((flow, list)); }
                            Some(first)
                        };
                        prop_assert_eq!(queue.pop(), want);
                    }
                    Op::Remove { nth } => {
                        if tickets.is_empty() { continue; }
                        let (ticket, value) = tickets[nth % tickets.len()];
                        let mut want = None;
                        for (_, list) in &mut lists {
                            if let Some(at) = list.iter().position(|v| *v == value) {
                                want = Some(list.remove(at));
                            }
                        }
                        lists.retain(|(_, list)| !list.is_empty());
                        prop_assert_eq!(queue.remove(ticket), want);
                    }
                }
                prop_assert_eq!(queue.len(), lists.iter().map(|(_, list)| list.len()).sum::<usize>());
            }
        }
    }
}
