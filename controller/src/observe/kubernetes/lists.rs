//! How the objects of one kind are followed: first all of them, then what changes.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Error, Event, watcher};
use serde::de::DeserializeOwned;

/// What the watch of a kind gives, for as long as it is asked. After an error it begins again, later each time.
pub(super) type Stream<K> = BoxStream<'static, Result<Event<K>, Error>>;

/// The status with which an API server refuses to stream a list: before Kubernetes 1.32, and in 1.33, where the feature
/// gate `WatchList` is off.
const INVALID: u16 = 422;

/// Follows objects without the part of them that nobody reads here.
pub(super) fn paged<K>(api: Api<K>, config: Config) -> Stream<K>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let pruned = |object: &mut K| object.meta_mut().managed_fields = None;
    watcher(api, config).default_backoff().modify(pruned).boxed()
}

/// The same for many objects: the API server sends the list as events of the watch, so that it writes one object while
/// another is read here, and no page is held. What it sends is what it has, and may be older than what another API server
/// of the cluster has sent before. So only the first list is a stream: later ones come by pages, which are read anew from
/// etcd, as does the first one where the API server cannot stream.
pub(super) fn streamed<K>(api: Api<K>, config: Config) -> Stream<K>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let events = paged(api.clone(), config.clone().streaming_lists());
    stream::unfold((events, Some((api, config)), false), |(mut events, mut otherwise, mut listed)| async move {
        loop {
            let event = events.next().await?;
            let over = match &event {
                Err(Error::WatchStartFailed(kube::Error::Api(status))) => status.code == INVALID,
                Ok(Event::Init) => listed,
                _ => false,
            };
            listed |= matches!(event, Ok(Event::InitDone));
            match otherwise.take_if(|_| over) {
                Some((api, config)) => events = paged(api, config),
                None => return Some((event, (events, otherwise, listed))),
            }
        }
    })
    .boxed()
}
