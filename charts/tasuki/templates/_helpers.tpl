{{/* Labels of every object. */}}
{{- define "tasuki.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: tasuki
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tasuki
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects the controller's pods. Never changes: a Deployment's selector cannot. */}}
{{- define "tasuki.selector" -}}
app.kubernetes.io/name: tasuki
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{/* The controller's image: by digest where there is one. */}}
{{- define "tasuki.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* "true" on OpenShift. */}}
{{- define "tasuki.openshift" -}}
{{- $asked := toString .Values.openshift.enabled -}}
{{- if or (eq $asked "true") (and (eq $asked "auto") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) -}}true{{- end -}}
{{- end }}

{{/* Host of the web service inside the cluster. */}}
{{- define "tasuki.webHost" -}}
tasuki.{{ .Release.Namespace }}.svc
{{- end }}

{{/* The controller's user, as the API server names it. */}}
{{- define "tasuki.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:tasuki
{{- end }}

{{/* Subject of all bindings. */}}
{{- define "tasuki.subjects" -}}
- kind: ServiceAccount
  name: tasuki
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* The security context of a pod without the ids that OpenShift gives itself. */}}
{{- define "tasuki.podSecurityContext" -}}
{{- $context := deepCopy .Values.podSecurityContext -}}
{{- if include "tasuki.openshift" . -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" "fsGroupChangePolicy" -}}
{{- end -}}
{{ toYaml $context }}
{{- end }}
