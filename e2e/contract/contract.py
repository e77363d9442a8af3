#!/usr/bin/env python3
"""Drives the local cloud with the real AWS CLI and holds each raw response against botocore's service models.

A member that the model does not know, a value of the wrong type, or an enum value outside the list is an error: the
local cloud must not drift from AWS. Runs the CLI in this process, so that the raw body of every response is seen.
"""
import io
import json
import os
import re
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import redirect_stderr, redirect_stdout

from awscli.clidriver import create_clidriver

TYPES = {
    "string": str,
    "integer": int,
    "long": int,
    "boolean": bool,
    "double": (int, float),
    "float": (int, float),
    "timestamp": (int, float),
    "blob": str,
}
problems = []
seen = set()


def check(shape, value, path):
    kind = shape.type_name
    if value is None:
        problems.append(f"{path}: null")
    elif kind == "structure":
        if not isinstance(value, dict):
            problems.append(f"{path}: expected a structure, got {value!r}")
            return
        for name, member in value.items():
            if name not in shape.members:
                problems.append(f"{path}.{name}: not in the model of {shape.name}")
            else:
                check(shape.members[name], member, f"{path}.{name}")
    elif kind == "list":
        if not isinstance(value, list):
            problems.append(f"{path}: expected a list, got {value!r}")
            return
        for index, item in enumerate(value):
            check(shape.member, item, f"{path}[{index}]")
    elif kind == "map":
        for name, item in value.items():
            check(shape.value, item, f"{path}[{name}]")
    else:
        wanted = TYPES[kind]
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "boolean"):
            problems.append(f"{path}: expected {kind}, got {value!r}")
        elif getattr(shape, "enum", None) and value not in shape.enum:
            problems.append(f"{path}: {value!r} is not one of {shape.enum}")


def xml_value(element):
    children = list(element)
    if not children:
        return element.text or ""
    return {re.sub(r"^{.*}", "", child.tag): xml_value(child) for child in children}


def after_call(http_response, parsed, model, **_):
    operation = f"{model.service_model.service_name}:{model.name}"
    seen.add(operation)
    if http_response.status_code >= 300:
        if "Error" not in parsed or not parsed["Error"].get("Code"):
            problems.append(f"{operation}: refusal without a code")
        return
    body = http_response.content
    if model.service_model.protocol == "query":
        value = xml_value(ET.fromstring(body)).get(f"{model.name}Result", {})
    else:
        value = json.loads(body or b"{}")
    if model.output_shape is not None:
        check(model.output_shape, value, operation)


def aws(*arguments, fails=None):
    """One CLI call; its parsed output. With `fails`, the call must be refused with that error code."""
    driver = create_clidriver()
    driver.session.register("after-call", after_call)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        # Said outright: for SQS the CLI prefers its old host names to AWS_ENDPOINT_URL.
        code = driver.main([str(a) for a in arguments] + ["--output", "json", "--endpoint-url", os.environ["AWS_ENDPOINT_URL"]])
    if fails is None and code != 0:
        problems.append(f"aws {' '.join(map(str, arguments[:2]))}: {err.getvalue().strip()}")
        return {}
    if fails is not None and (code == 0 or fails not in err.getvalue()):
        problems.append(f"aws {' '.join(map(str, arguments[:2]))}: expected {fails}, got {code}: {err.getvalue().strip()}")
    return json.loads(out.getvalue() or "{}")


def expect(what, actual, wanted):
    if actual != wanted:
        problems.append(f"{what}: expected {wanted!r}, got {actual!r}")


def until(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.2)
    problems.append(f"{what}: not reached in {seconds} s")


def run():
    network = "awsvpcConfiguration={subnets=[subnet-1],securityGroups=[sg-1]}"
    account = aws("sts", "get-caller-identity")["Account"]
    region = os.environ["AWS_DEFAULT_REGION"]
    policy = {"Statement": {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"},
                            "Action": "sqs:SendMessage", "Resource": "*"}}
    queue = aws("sqs", "create-queue", "--queue-name", "ev", "--attributes", json.dumps({"Policy": json.dumps(policy)}))["QueueUrl"]
    pattern = {"source": ["aws.ecs"]}
    aws("events", "put-rule", "--name", "r", "--event-pattern", json.dumps(pattern))
    aws("events", "put-targets", "--rule", "r", "--targets", f"Id=1,Arn=arn:aws:sqs:{region}:{account}:ev")
    for call in (["list-rules"], ["describe-rule", "--name", "r"], ["list-targets-by-rule", "--rule", "r"]):
        aws("events", *call)
    refused = aws("events", "put-events", "--entries", '[{"Source":"aws.ecs","DetailType":"x","Detail":"{}"}]')
    expect("put-events aws.*", refused["Entries"][0].get("ErrorCode"), "NotAuthorizedForSourceException")

    aws("ecs", "create-cluster", "--cluster-name", "web", "--tags", "key=a,value=b")
    aws("ecs", "describe-clusters", "--clusters", "web", "nope", "--include", "TAGS", "SETTINGS", "CONFIGURATIONS")
    aws("ecs", "list-clusters")
    containers = json.dumps([{"name": "app", "image": "app:1", "portMappings": [{"containerPort": 80}]}])
    register = ["ecs", "register-task-definition", "--family", "web", "--network-mode", "awsvpc", "--cpu", "256",
                "--requires-compatibilities", "FARGATE", "--container-definitions", containers]
    aws(*register, "--memory", "512", "--tags", "key=t,value=1")
    aws(*register, "--memory", "999", fails="ClientException")
    aws(*register, "--memory", "1024")
    aws("ecs", "describe-task-definition", "--task-definition", "web", "--include", "TAGS")
    aws("ecs", "list-task-definitions")
    aws("ecs", "list-task-definition-families")
    aws("ecs", "create-service", "--cluster", "web", "--service-name", "s", "--task-definition", "web:1", "--desired-count", "2",
        "--launch-type", "FARGATE", "--network-configuration", network, "--propagate-tags", "TASK_DEFINITION",
        "--enable-ecs-managed-tags", "--deployment-configuration",
        "deploymentCircuitBreaker={enable=true,rollback=true}")
    task = aws("ecs", "run-task", "--cluster", "web", "--task-definition", "web:1", "--launch-type", "FARGATE",
               "--network-configuration", network)["tasks"][0]["taskArn"]

    def service():
        return aws("ecs", "describe-services", "--cluster", "web", "--services", "s", "nope", "--include", "TAGS")["services"][0]

    def completed():
        deployments = service()["deployments"]
        return len(deployments) == 1 and deployments[0]["rolloutState"] == "COMPLETED"

    until("first deployment", completed)
    aws("ecs", "update-service", "--cluster", "web", "--service", "s", "--task-definition", "web:2")
    until("second deployment", completed)
    expect("task definition", service()["taskDefinition"].rsplit(":", 1)[1], "2")
    aws("ecs", "list-services", "--cluster", "web")
    tasks = aws("ecs", "list-tasks", "--cluster", "web", "--service-name", "s")["taskArns"]
    expect("tasks of the service", len(tasks), 2)
    shown = aws("ecs", "describe-tasks", "--cluster", "web", "--tasks", *tasks, "gone", "--include", "TAGS")
    expect("failures", [f["reason"] for f in shown["failures"]], ["MISSING"])
    expect("tags", "aws:ecs:serviceName" in [t["key"] for t in shown["tasks"][0]["tags"]], True)
    aws("ecs", "stop-task", "--cluster", "web", "--task", task)
    records = aws("ecs", "list-service-deployments", "--cluster", "web", "--service", "s")["serviceDeployments"]
    expect("service deployments", [r["status"] for r in records], ["SUCCESSFUL", "SUCCESSFUL"])
    aws("ecs", "describe-service-deployments", "--service-deployment-arns", records[0]["serviceDeploymentArn"])
    aws("ecs", "describe-service-revisions", "--service-revision-arns", records[0]["targetServiceRevisionArn"])
    aws("ecs", "stop-service-deployment", "--service-deployment-arn", records[0]["serviceDeploymentArn"], fails="ConflictException")
    aws("ecs", "tag-resource", "--resource-arn", service()["serviceArn"], "--tags", "key=x,value=y")
    aws("ecs", "list-tags-for-resource", "--resource-arn", service()["serviceArn"])

    nodes = aws("ecs", "list-container-instances", "--cluster", "demo")["containerInstanceArns"]
    expect("container instances", len(nodes), 2)
    aws("ecs", "describe-container-instances", "--cluster", "demo", "--container-instances", *nodes)
    aws("ecs", "put-attributes", "--cluster", "demo", "--attributes", f"name=tasuki.next,value=1,targetId={nodes[0]}")
    aws("ecs", "list-attributes", "--cluster", "demo", "--target-type", "container-instance", "--attribute-name", "tasuki.next")
    aws("ecs", "register-task-definition", "--family", "agent", "--network-mode", "host", "--pid-mode", "host",
        "--container-definitions", '[{"name":"agent","image":"agent:1","memory":128,"privileged":true}]')
    aws("ecs", "create-service", "--cluster", "demo", "--service-name", "agent", "--task-definition", "agent",
        "--scheduling-strategy", "DAEMON", "--launch-type", "EC2", "--placement-constraints",
        "type=memberOf,expression=attribute:tasuki.next exists")
    until("daemon", lambda: len(aws("ecs", "list-tasks", "--cluster", "demo")["taskArns"]) == 1)
    aws("ecs", "update-container-instances-state", "--cluster", "demo", "--container-instances", nodes[0], "--status", "DRAINING")
    aws("ecs", "delete-attributes", "--cluster", "demo", "--attributes", f"name=tasuki.next,targetId={nodes[0]}")
    aws("ecs", "deregister-task-definition", "--task-definition", "web:1")
    aws("ecs", "run-task", "--cluster", "web", "--task-definition", "web:1", "--launch-type", "FARGATE",
        "--network-configuration", network, fails="ClientException")
    aws("ecs", "delete-task-definitions", "--task-definitions", "web:1")
    aws("ecs", "delete-service", "--cluster", "web", "--service", "s", fails="InvalidParameterException")
    aws("ecs", "delete-service", "--cluster", "web", "--service", "s", "--force")
    aws("ecs", "describe-services", "--cluster", "none", "--services", "s", fails="ClusterNotFoundException")
    aws("ecs", "list-account-settings", fails="UnknownOperationException")

    got = aws("sqs", "receive-message", "--queue-url", queue, "--max-number-of-messages", "10", "--attribute-names", "All")
    details = [json.loads(m["Body"]) for m in got["Messages"]]
    expect("envelope", sorted(details[0]), sorted(["version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail"]))
    receipt = got["Messages"][0]["ReceiptHandle"]
    aws("sqs", "change-message-visibility", "--queue-url", queue, "--receipt-handle", receipt, "--visibility-timeout", "60")
    aws("sqs", "delete-message", "--queue-url", queue, "--receipt-handle", receipt)
    aws("sqs", "send-message", "--queue-url", queue, "--message-body", "x", "--message-attributes", '{"a":{"DataType":"String","StringValue":"b"}}')
    aws("sqs", "send-message-batch", "--queue-url", queue, "--entries", '[{"Id":"1","MessageBody":"y"}]')
    aws("sqs", "get-queue-attributes", "--queue-url", queue, "--attribute-names", "All")
    aws("sqs", "list-queues")
    aws("sqs", "purge-queue", "--queue-url", queue)
    aws("sqs", "get-queue-url", "--queue-name", "none", fails="NonExistentQueue")
    aws("sqs", "delete-queue", "--queue-url", queue)
    aws("events", "remove-targets", "--rule", "r", "--ids", "1")
    aws("events", "delete-rule", "--name", "r")
    aws("sts", "assume-role", "--role-arn", f"arn:aws:iam::{account}:role/none", "--role-session-name", "ss", fails="AccessDenied")
    os.environ["AWS_SECRET_ACCESS_KEY"] = "wrong"
    aws("sts", "get-caller-identity", fails="SignatureDoesNotMatch")
    aws("ecs", "list-clusters", fails="InvalidSignatureException")


try:
    run()
except Exception as error:  # what was found so far explains it best
    problems.append(f"{type(error).__name__}: {error}")
for problem in problems:
    print(f"FAIL {problem}")
print(f"{len(seen)} operations called")
sys.exit(1 if problems else 0)
