{{- define "berth.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 48 | trimSuffix "-" -}}
{{- end -}}

{{- define "berth.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "berth.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "berth.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{/* Labels that pods are found by. They must never change: selectors can't. */}}
{{- define "berth.selectorLabels" -}}
app.kubernetes.io/name: {{ include "berth.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "berth.labels" -}}
{{ include "berth.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "berth.image" -}}
{{- $image := .Values.image -}}
{{- $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "berth.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (printf "%s-controller" (include "berth.fullname" .)) -}}
{{- end -}}

{{/* The DaemonSets of agents, as JSON: that of the pools, and one for each group. */}}
{{- define "berth.agentGroups" -}}
{{- $groups := list -}}
{{- if .Values.pools -}}
{{- $groups = append $groups (dict "name" "" "pools" .Values.pools) -}}
{{- end -}}
{{- range .Values.agent.groups -}}
{{- $groups = append $groups . -}}
{{- end -}}
{{- toJson $groups -}}
{{- end -}}

{{/* "true" when there are agents. */}}
{{- define "berth.hasAgents" -}}
{{- if or .Values.pools .Values.agent.groups -}}true{{- end -}}
{{- end -}}

{{/* "true" when the controller issues certificates. */}}
{{- define "berth.issues" -}}
{{- if and (include "berth.hasAgents" .) (eq .Values.tls.source "berth") -}}true{{- end -}}
{{- end -}}

{{/* The Secret of a certificate: berth.tlsSecret (list $ "agent"). */}}
{{- define "berth.tlsSecret" -}}
{{- $root := index . 0 -}}{{- $kind := index . 1 -}}
{{- if eq $root.Values.tls.source "secrets" -}}
{{- $name := index $root.Values.tls.secrets $kind -}}
{{- if and (not $name) (ne $kind "metrics") -}}
{{- fail (printf "tls.source is secrets: tls.secrets.%s has to name a Secret with tls.crt, tls.key and ca.crt" $kind) -}}
{{- end -}}
{{- $name -}}
{{- else -}}
{{- include "berth.fullname" $root }}-{{ $kind }}-tls
{{- end -}}
{{- end -}}

{{/*
The StorageClasses to make, as JSON: those of the list with what they leave out
filled in. Every class has driver, name and parameters, the latter all strings.
*/}}
{{- define "berth.storageClasses" -}}
{{- $out := list -}}
{{- range .Values.storageClasses -}}
{{- $class := deepCopy . -}}
{{- $parameters := dict -}}
{{- range $name, $value := .parameters -}}
{{- $_ := set $parameters $name (include "berth.string" $value) -}}
{{- end -}}
{{- $wanted := true -}}
{{- if and (eq .driver "nfs") (not (hasKey $parameters "server")) -}}
{{- if $.Values.nfs.server -}}
{{- $_ := set $parameters "server" $.Values.nfs.server -}}
{{- if not (hasKey $parameters "share") -}}
{{- $_ := set $parameters "share" (required "nfs.server is given: nfs.path has to say which directory it exports for volumes, such as /export/k8s" $.Values.nfs.path) -}}
{{- end -}}
{{- if and $.Values.nfs.mountOptions (not .mountOptions) -}}
{{- $_ := set $class "mountOptions" $.Values.nfs.mountOptions -}}
{{- end -}}
{{- else -}}
{{- $wanted = false -}}
{{- end -}}
{{- end -}}
{{- if and (eq .driver "hostpath") (not (include "berth.hasAgents" $)) -}}
{{- $wanted = false -}}
{{- end -}}
{{- if $wanted -}}
{{- $_ := set $class "parameters" $parameters -}}
{{- $_ := set $class "default" (or .default (eq .name $.Values.defaultStorageClass)) -}}
{{- $out = append $out $class -}}
{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* Numbers as people write them: YAML makes floating-point numbers of them. */}}
{{- define "berth.string" -}}
{{- if kindIs "float64" . -}}{{ int64 . }}{{- else -}}{{ toString . }}{{- end -}}
{{- end -}}

{{/*
What a class has in the cluster that can't be changed, as JSON, when it is not
what the values ask for; nothing when all is well, and where the cluster can't be
looked at ("helm template"). berth.immutable (dict "class" $class).
*/}}
{{- define "berth.immutable" -}}
{{- $class := .class -}}
{{- $live := lookup "storage.k8s.io/v1" "StorageClass" "" $class.name -}}
{{- if $live -}}
{{- $has := dict "provisioner" $live.provisioner "parameters" ($live.parameters | default dict) "reclaimPolicy" ($live.reclaimPolicy | default "Delete") "volumeBindingMode" ($live.volumeBindingMode | default "Immediate") -}}
{{- $wants := dict "provisioner" (printf "%s.berth.storage" $class.driver) "parameters" $class.parameters "reclaimPolicy" ($class.reclaimPolicy | default "Delete") "volumeBindingMode" ($class.volumeBindingMode | default "Immediate") -}}
{{- if ne (toJson $has) (toJson $wants) -}}{{- toJson $has -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The name of the volume of a directory of a pool: pool-NAME, and pool-NAME-2 for
one more directory of the same pool. berth.poolVolume (list $pools $index).
*/}}
{{- define "berth.poolVolume" -}}
{{- $pools := index . 0 -}}{{- $index := index . 1 -}}
{{- $name := (index $pools $index).name -}}
{{- $nth := 0 -}}
{{- range $i, $pool := $pools -}}
{{- if and (le $i $index) (eq $pool.name $name) -}}{{- $nth = add $nth 1 -}}{{- end -}}
{{- end -}}
pool-{{ $name }}{{ if gt (int $nth) 1 }}-{{ $nth }}{{ end }}
{{- end -}}

{{/*
Where "helm test" has a volume of a class, as JSON: {nodeSelector, tolerations}. By
default on the nodes of the agents that have its pool, as far as those are of one
DaemonSet. That agents tolerate all taints says nothing: a pod that does may be put
on a dead node. berth.testNodes (list $ $class).
*/}}
{{- define "berth.testNodes" -}}
{{- $root := index . 0 -}}{{- $class := index . 1 -}}
{{- $found := list -}}
{{- if eq ($class.driver | default "") "hostpath" -}}
{{- $wanted := $class.parameters.pool | default "default" -}}
{{- range $group := include "berth.agentGroups" $root | fromJsonArray -}}
{{- $has := false -}}
{{- range $group.pools -}}{{- if eq .name $wanted -}}{{- $has = true -}}{{- end -}}{{- end -}}
{{- if $has -}}{{- $found = append $found $group -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $selector := dict -}}{{- $tolerations := list -}}
{{- if eq (len $found) 1 -}}
{{- $group := first $found -}}
{{- $selector = ternary $group.nodeSelector $root.Values.agent.nodeSelector (not (empty $group.name)) -}}
{{- range $group.tolerations | default $root.Values.agent.tolerations -}}
{{- if .key -}}{{- $tolerations = append $tolerations . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson (dict "nodeSelector" ($root.Values.tests.nodeSelector | default $selector) "tolerations" ($root.Values.tests.tolerations | default $tolerations)) -}}
{{- end -}}
