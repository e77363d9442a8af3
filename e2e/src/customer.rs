//! The customer: clusters, services and a task, made through plain AWS API calls as anyone would.

use anyhow::{Context, Result};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_ecs::types as ecs;
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::json;

/// The customer's account and Region.
pub const ACCOUNT: &str = "111122223333";
/// Region of everything.
pub const REGION: &str = "eu-west-1";
/// Cluster with one EC2 container instance.
pub const EC2_CLUSTER: &str = "shop-ec2";
/// Cluster on Fargate.
pub const FARGATE_CLUSTER: &str = "shop-fargate";

/// An access key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
}

/// SDK configuration for the local cloud at `endpoint`.
pub async fn sdk(endpoint: &str, key: &Key) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(&key.id, &key.secret, None, None, "local"))
        .load()
        .await
}

/// The customer's clients.
pub struct Customer {
    /// ECS.
    pub ecs: aws_sdk_ecs::Client,
    /// EventBridge.
    pub events: aws_sdk_eventbridge::Client,
    /// SQS.
    pub sqs: aws_sdk_sqs::Client,
}

impl Customer {
    /// Clients for the local cloud.
    pub fn new(config: &SdkConfig) -> Self {
        Self {
            ecs: aws_sdk_ecs::Client::new(config),
            events: aws_sdk_eventbridge::Client::new(config),
            sqs: aws_sdk_sqs::Client::new(config),
        }
    }

    /// The queue that Tasuki reads, fed by EventBridge rules as manifests/aws/ makes them.
    pub async fn event_queue(&self) -> Result<String> {
        let name = "tasuki-events";
        let url = self.sqs.create_queue().queue_name(name).send().await.context("CreateQueue")?;
        let url = url.queue_url.context("CreateQueue gave no URL")?;
        let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}");
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"},
                "Action": "sqs:SendMessage", "Resource": arn,
                "Condition": {"ArnLike": {"aws:SourceArn": format!("arn:aws:events:{REGION}:{ACCOUNT}:rule/tasuki-*")}}
            }]
        });
        let set = self.sqs.set_queue_attributes().queue_url(&url);
        set.attributes(QueueAttributeName::Policy, policy.to_string()).send().await.context("SetQueueAttributes")?;
        let rules = [
            ("tasuki-tasks", json!({"source": ["aws.ecs"], "detail-type": ["ECS Task State Change"]})),
            (
                "tasuki-nodes",
                json!({"source": ["aws.ecs"], "detail-type": ["ECS Container Instance State Change"],
                       "detail": {"$or": [{"status": [{"anything-but": "ACTIVE"}]}, {"agentConnected": [false]}]}}),
            ),
            ("tasuki-deployments", json!({"source": ["aws.ecs"], "detail-type": ["ECS Deployment State Change"]})),
        ];
        for (name, pattern) in rules {
            let put = self.events.put_rule().name(name).event_pattern(pattern.to_string());
            put.send().await.with_context(|| format!("PutRule {name}"))?;
            let target = aws_sdk_eventbridge::types::Target::builder().id("queue").arn(&arn).build()?;
            self.events
                .put_targets()
                .rule(name)
                .targets(target)
                .send()
                .await
                .with_context(|| format!("PutTargets {name}"))?;
        }
        Ok(url)
    }

    /// Both clusters, without nodes.
    pub async fn clusters(&self) -> Result<()> {
        for name in [EC2_CLUSTER, FARGATE_CLUSTER] {
            let tag = ecs::Tag::builder().key("env").value("prod").build();
            self.ecs
                .create_cluster()
                .cluster_name(name)
                .tags(tag)
                .send()
                .await
                .with_context(|| format!("CreateCluster {name}"))?;
        }
        Ok(())
    }

    /// The services `web` (EC2), `checkout` and `billing` (Fargate), and the standalone task `report`.
    pub async fn workloads(&self, image: &str) -> Result<()> {
        for family in ["web", "checkout", "billing", "report"] {
            self.definition(family, family != "web", image).await?;
        }
        self.service(EC2_CLUSTER, "web", ecs::LaunchType::Ec2).await?;
        self.service(FARGATE_CLUSTER, "checkout", ecs::LaunchType::Fargate).await?;
        self.service(FARGATE_CLUSTER, "billing", ecs::LaunchType::Fargate).await?;
        let run = self
            .ecs
            .run_task()
            .cluster(FARGATE_CLUSTER)
            .task_definition("report")
            .launch_type(ecs::LaunchType::Fargate);
        let ran = run.network_configuration(network()?).send().await.context("RunTask report")?;
        anyhow::ensure!(ran.failures().is_empty(), "RunTask report failed: {:?}", ran.failures());
        Ok(())
    }

    async fn definition(&self, family: &str, fargate: bool, image: &str) -> Result<()> {
        let container = ecs::ContainerDefinition::builder()
            .name("app")
            .image(image)
            .essential(true)
            .stop_timeout(2)
            .environment(ecs::KeyValuePair::builder().name("EMPTY").value("").build())
            .memory_reservation(64)
            .build();
        let register = self
            .ecs
            .register_task_definition()
            .family(family)
            .network_mode(ecs::NetworkMode::Awsvpc)
            .container_definitions(container)
            .execution_role_arn(role("shop-execution"))
            .task_role_arn(role("shop-task"));
        let register = match fargate {
            true => register.requires_compatibilities(ecs::Compatibility::Fargate).cpu("512").memory("1024"),
            false => register.requires_compatibilities(ecs::Compatibility::Ec2),
        };
        register.send().await.with_context(|| format!("RegisterTaskDefinition {family}"))?;
        Ok(())
    }

    async fn service(&self, cluster: &str, name: &str, launch: ecs::LaunchType) -> Result<()> {
        let breaker = ecs::DeploymentCircuitBreaker::builder().enable(true).rollback(true).build();
        let deployment = ecs::DeploymentConfiguration::builder()
            .minimum_healthy_percent(100)
            .maximum_percent(200)
            .deployment_circuit_breaker(breaker)
            .build();
        let create = self.ecs.create_service().cluster(cluster).service_name(name).task_definition(name);
        let create = create.desired_count(1).launch_type(launch).deployment_configuration(deployment);
        create.network_configuration(network()?).send().await.with_context(|| format!("CreateService {name}"))?;
        Ok(())
    }

    /// The one running task of a service; none while there are several, as a deployment replaces it.
    pub async fn task(&self, cluster: &str, service: &str) -> Result<Option<RunningTask>> {
        let list = self.ecs.list_tasks().cluster(cluster).service_name(service).send().await.context("ListTasks")?;
        if list.task_arns().is_empty() {
            return Ok(None);
        }
        let described = self
            .ecs
            .describe_tasks()
            .cluster(cluster)
            .set_tasks(list.task_arns)
            .send()
            .await
            .context("DescribeTasks")?;
        let running =
            |task: &&ecs::Task| task.last_status() == Some("RUNNING") && task.desired_status() == Some("RUNNING");
        let mut running = described.tasks().iter().filter(running);
        let (Some(task), None) = (running.next(), running.next()) else { return Ok(None) };
        let details = task.attachments().iter().flat_map(|attachment| attachment.details());
        let address = details.into_iter().find(|detail| detail.name() == Some("privateIPv4Address"));
        let Some(address) = address.and_then(|detail| detail.value()) else { return Ok(None) };
        Ok(Some(RunningTask {
            arn: task.task_arn().unwrap_or_default().to_owned(),
            address: address.parse()?,
            definition: task.task_definition_arn().unwrap_or_default().to_owned(),
            containers: task.containers().iter().filter_map(|container| container.name().map(str::to_owned)).collect(),
        }))
    }
}

impl Customer {
    /// Definition and roll-out state of a service's only deployment; none while there are several.
    pub async fn deployed(&self, cluster: &str, service: &str) -> Result<Option<(String, String)>> {
        let described = self.ecs.describe_services().cluster(cluster).services(service).send().await;
        let described = described.with_context(|| format!("DescribeServices {service}"))?;
        let [deployment] = described.services().iter().flat_map(|s| s.deployments()).collect::<Vec<_>>()[..] else {
            return Ok(None);
        };
        let state = deployment.rollout_state().map(|state| state.as_str()).unwrap_or_default();
        Ok(Some((deployment.task_definition().unwrap_or_default().to_owned(), state.to_owned())))
    }

    /// Revisions of a family that exist, whether or not they are in use.
    pub async fn revisions(&self, family: &str) -> Result<Vec<String>> {
        let list = self.ecs.list_task_definitions().family_prefix(family).send().await;
        Ok(list.with_context(|| format!("ListTaskDefinitions {family}"))?.task_definition_arns.unwrap_or_default())
    }

    /// What Tasuki would have left: daemon services, node attributes and definitions in use, as any
    /// caller of the API sees them.
    pub async fn left_by_tasuki(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for cluster in [EC2_CLUSTER, FARGATE_CLUSTER] {
            let services = self.ecs.list_services().cluster(cluster).send().await.context("ListServices")?;
            left.extend(services.service_arns().iter().filter(|arn| arn.contains("/tasuki")).cloned());
            let attributes =
                self.ecs.list_attributes().cluster(cluster).target_type(ecs::TargetType::ContainerInstance);
            let attributes = attributes.send().await.context("ListAttributes")?;
            left.extend(
                attributes
                    .attributes()
                    .iter()
                    .map(|a| a.name())
                    .filter(|name| name.starts_with("tasuki."))
                    .map(str::to_owned),
            );
        }
        let families = self
            .ecs
            .list_task_definitions()
            .status(ecs::TaskDefinitionStatus::Active)
            .send()
            .await
            .context("ListTaskDefinitions")?;
        let own = |arn: &&String| arn.contains("-tasuki:") || arn.contains("task-definition/tasuki:");
        left.extend(families.task_definition_arns().iter().filter(own).cloned());
        Ok(left)
    }
}

/// A task that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningTask {
    /// ARN.
    pub arn: String,
    /// Its own address.
    pub address: std::net::Ipv4Addr,
    /// Task-definition ARN.
    pub definition: String,
    /// Container names.
    pub containers: Vec<String>,
}

/// ARN of a role in the customer's account.
pub fn role(name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{name}")
}

fn network() -> Result<ecs::NetworkConfiguration> {
    let vpc = ecs::AwsVpcConfiguration::builder()
        .subnets("subnet-0a1b2c3d")
        .security_groups("sg-0a1b2c3d")
        .assign_public_ip(ecs::AssignPublicIp::Disabled)
        .build()?;
    Ok(ecs::NetworkConfiguration::builder().awsvpc_configuration(vpc).build())
}
