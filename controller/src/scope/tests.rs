//! Scopes over a wire: who is asked, as whom, and what stays.

use super::{Kind, Scopes};
use crate::act::budget::Priority;
use crate::observe::reads::Reads;
use crate::testing::{ACCOUNT, Answer, Ecs, REGION, Wire, config, document, scope_id};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use tasuki_api::desired::AwsScopeSpec;
use tasuki_core::fleet::Str;

fn documents(specs: &[(&str, AwsScopeSpec)]) -> BTreeMap<Str, AwsScopeSpec> {
    specs.iter().map(|(name, spec)| ((*name).into(), spec.clone())).collect()
}

#[tokio::test]
async fn clients_are_made_again_only_when_their_document_changes() {
    let scopes = Scopes::new(config(&Ecs::default().wire()).await);
    let mut changed = document();
    scopes.sync(&documents(&[("a", document())])).await;
    let first = scopes.get(&scope_id()).unwrap();
    scopes.sync(&documents(&[("a", document())])).await;
    assert!(Arc::ptr_eq(&first, &scopes.get(&scope_id()).unwrap()));
    changed.share = "10%".parse().unwrap();
    changed.regions.push("eu-central-1".to_owned());
    scopes.sync(&documents(&[("a", changed)])).await;
    let second = scopes.get(&scope_id()).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(Arc::ptr_eq(&first.budget, &second.budget), "tokens that were taken stay taken");
    assert_eq!(scopes.all().len(), 2);
    scopes.sync(&BTreeMap::new()).await;
    assert!(scopes.all().is_empty());
}

#[tokio::test]
async fn two_documents_for_one_account_and_region_are_told_apart_by_name() {
    let scopes = Scopes::new(config(&Ecs::default().wire()).await);
    let problems = scopes.sync(&documents(&[("b", document()), ("a", document())])).await;
    assert_eq!(&*problems[0].document, "b");
    assert!(problems[0].message.contains("AwsScope/a"), "{}", problems[0].message);
    assert_eq!(&*scopes.get(&scope_id()).unwrap().document, "a");
}

/// STS speaks XML, so its answers come from a connector of their own.
#[tokio::test]
async fn an_account_that_cannot_be_asked_for_is_a_problem_and_not_the_end() {
    let wire = Wire::new(|_, _| Answer::Error("InvalidClientTokenId", "The security token is invalid.".to_owned()));
    let scopes = Scopes::new(config(&wire).await);
    let mut spec = document();
    spec.accounts.clear();
    let problems = scopes.sync(&documents(&[("own", spec), ("other", document())])).await;
    assert_eq!(problems.len(), 1);
    assert!(problems[0].message.contains("sts:GetCallerIdentity") && problems[0].message.contains("credentials"));
    assert!(scopes.get(&scope_id()).is_some(), "the other document works");
}

#[tokio::test]
async fn a_role_that_may_not_be_assumed_is_a_denied_call() {
    let wire = Wire::new(|operation, _| {
        match operation {
        "" => Answer::Xml(403, "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: arn:aws:iam::111122223333:user/x is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::111122223333:role/tasuki-read</Message></Error><RequestId>1</RequestId></ErrorResponse>".to_owned()),
        _ => Answer::Ok(json!({})),
    }
    });
    let scopes = Scopes::new(config(&wire).await);
    let mut spec = document();
    spec.read_role_name = Some("tasuki-read".to_owned());
    scopes.sync(&documents(&[("org", spec)])).await;
    let scope = scopes.get(&scope_id()).unwrap();
    let error = Reads { scope: &scope, priority: Priority::Sweep }.list_clusters().await.unwrap_err();
    assert_eq!((error.kind, error.api), (Kind::Denied, "sts:AssumeRole"), "{error}");
    assert_eq!(error.principal(), Some("arn:aws:iam::111122223333:user/x"));
    assert!(error.statement().unwrap().contains("role/tasuki-read"), "{}", error.detail());
}

#[tokio::test]
async fn roles_are_assumed_with_the_external_id_and_used() {
    let wire = Wire::new(|operation, _| {
        match operation {
        "" => Answer::Xml(200, "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>A:tasuki</AssumedRoleId><Arn>arn:aws:sts::111122223333:assumed-role/tasuki-read/tasuki</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIAREAD</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>".to_owned()),
        _ => Answer::Ok(json!({"clusterArns": []})),
    }
    });
    let scopes = Scopes::new(config(&wire).await);
    let mut spec = document();
    spec.read_role_name = Some("tasuki-read".to_owned());
    spec.external_id = Some("org-7".to_owned());
    scopes.sync(&documents(&[("org", spec)])).await;
    let scope = scopes.get(&scope_id()).unwrap();
    Reads { scope: &scope, priority: Priority::Sweep }.list_clusters().await.unwrap();
    let forms = wire.forms();
    assert!(forms[0].contains("ExternalId=org-7") && forms[0].contains("RoleSessionName=tasuki"), "{forms:?}");
    assert!(forms[0].contains(&format!("iam%3A%3A{ACCOUNT}%3Arole%2Ftasuki-read")), "{forms:?}");
    let signed = wire.authorizations();
    assert!(signed[1].contains("Credential=ASIAREAD/") && signed[1].contains(&format!("/{REGION}/ecs/")), "{signed:?}");
}
