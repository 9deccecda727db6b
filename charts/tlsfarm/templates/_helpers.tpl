{{/* Name of the chart, as the label app.kubernetes.io/name. */}}
{{- define "tlsfarm.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the operator's objects: the release's, with the chart's unless that is part of it. */}}
{{- define "tlsfarm.fullname" -}}
{{- $name := include "tlsfarm.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that never change. The component keeps the operator apart from the proxies of a farm called like the release. */}}
{{- define "tlsfarm.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tlsfarm.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "tlsfarm.labels" -}}
{{ include "tlsfarm.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "tlsfarm.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tlsfarm.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "tlsfarm.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag }}
{{- with .Values.image.digest }}
{{- printf "%s@%s" $.Values.image.repository . }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{/* The namespaces that get a Role, as a JSON list. */}}
{{- define "tlsfarm.namespaces" -}}
{{- if and .Values.clusterWide .Values.watchNamespaces }}
{{- fail "clusterWide serves all namespaces: leave watchNamespaces empty" }}
{{- end }}
{{- default (list .Release.Namespace) .Values.watchNamespaces | uniq | toJson }}
{{- end }}

{{/* What the pods of this chart may do: nothing that Pod Security level "restricted" forbids. */}}
{{- define "tlsfarm.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tlsfarm.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What the operator does in a namespace whose farms it serves; docs/permissions.md explains each rule. */}}
{{- define "tlsfarm.operatorRules" -}}
- apiGroups: [tlsfarm.dev]
  resources: [tlsfarms]
  verbs: [get, list, watch]
- apiGroups: [tlsfarm.dev]
  resources: [tlsfarms/status]
  verbs: [patch]
# Owner references that block the owner's deletion need this where the admission plugin
# OwnerReferencesPermissionEnforcement runs.
- apiGroups: [tlsfarm.dev]
  resources: [tlsfarms/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# The ring of each farm and the certificates of its caches, by name. No list and no watch: they would show every Secret of
# the namespace.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, update, delete]
# patch: the annotation that makes the kubelet refresh a pod's mounts at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
# Passed on to the proxies, which find their backends by it: nobody can grant what he does not have.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
