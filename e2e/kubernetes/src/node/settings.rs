//! The settings files of a node's programs.

use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// The image of the container that holds a pod's namespaces.
pub const PAUSE: &str = "tasuki.test/pause:1";
/// Address of the cluster's DNS.
pub const DNS: &str = "10.96.0.10";
/// Name of the script that starts runc.
pub const RUNC: &str = "runc";

/// containerd's, whose paths are the usual ones in a mount namespace of the node's own.
///
/// `registry` serves images, whatever host their names say. This way of naming it is the one that containerd 1.6
/// and 1.7 both know.
pub fn containerd(directory: &Path, registry: Option<&str>) -> String {
    // Port 9 discards: a pull fails at once instead of asking the world.
    let registry = registry.unwrap_or("127.0.0.1:9");
    format!(
        r#"version = 2
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# Not every machine lets root lower it.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{}"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]
endpoint = ["http://{registry}"]
"#,
        directory.join("cni").display(),
        directory.join(RUNC).display(),
    )
}

/// Starts runc without those capabilities that this machine does not give to root either: with any of them asked for,
/// runc refuses the whole container. On other machines it changes nothing.
pub fn runc(bounding: u64) -> String {
    let missing = caps::all().into_iter().filter(|capability| bounding & (1 << capability.index()) == 0);
    let edits: Vec<String> = missing.map(|name| format!("s/\"{name}\",//g;s/,\"{name}\"//g;s/\"{name}\"//g")).collect();
    format!(
        "#!/bin/sh\nbundle=; before=\nfor word; do\n  [ \"$before\" = --bundle ] && bundle=$word\n  before=$word\ndone\n\
         [ -z \"$bundle\" ] || sed -i '{}' \"$bundle/config.json\"\nexec runc \"$@\"\n",
        edits.join(";")
    )
}

/// The network of its pods: a link and a route for each, so that Services also work between pods of one node where
/// the kernel does not filter bridges.
pub fn network(pods: &str) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pods }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    }))?)
}

/// The kubelet's.
pub fn kubelet(directory: &Path, cgroup: &str, extra: &Value) -> Result<String> {
    let path = |file: &str| directory.join(file).display().to_string();
    let mut settings = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "x509": { "clientCAFile": path("ca.crt") }, "anonymous": { "enabled": false } },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": path("kubelet.crt"),
        "tlsPrivateKeyFile": path("kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": path("resolv.conf"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // A machine for development is often nearly full.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        "serializeImagePulls": false,
    });
    if let (Some(settings), Some(extra)) = (settings.as_object_mut(), extra.as_object()) {
        settings.extend(extra.clone());
    }
    Ok(serde_json::to_string_pretty(&settings)?)
}

/// kube-proxy's. Connection tracking is the whole machine's: its limits are left alone.
pub fn proxy(directory: &Path, name: &str) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": name,
        "detectLocalMode": "InterfaceNamePrefix",
        "detectLocal": { "interfaceNamePrefix": "veth" },
        "clientConnection": { "kubeconfig": directory.join("proxy.kubeconfig") },
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    }))?)
}
