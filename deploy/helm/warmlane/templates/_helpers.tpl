{{- define "warmlane.labels" -}}
app.kubernetes.io/name: warmlane
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: endpoint-picker
{{- end }}

{{- define "warmlane.selector" -}}
app.kubernetes.io/name: warmlane
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "warmlane.gatewayClass" -}}
{{- $usual := dict "istio" "istio" "envoy-gateway" "envoy-gateway" "envoy-ai-gateway" "envoy-gateway" -}}
{{- $name := .Values.gateway.className | default (get $usual .Values.gateway.kind) -}}
{{- required "gateway.className: name the gateway class of your gateway, or set gateway.create to false" $name -}}
{{- end }}

{{- define "warmlane.config" -}}
{{- $config := .Values.picker.config -}}
{{- if .Values.picker.leaderElection -}}
{{- $config = mergeOverwrite (deepCopy $config) (dict "leader" (dict "lease" .Release.Name)) -}}
{{- end -}}
{{- $share := .Values.picker.share -}}
{{- $several := and (gt (int .Values.picker.replicas) 1) (not .Values.picker.leaderElection) -}}
{{- if or $share.url $several -}}
{{- $told := dict "routers" (max 1 (int .Values.picker.replicas)) -}}
{{- if $share.url -}}{{- $_ := set $told "url" $share.url -}}{{- end -}}
{{- if $share.passwordSecret -}}{{- $_ := set $told "password_env" "SHARE_PASSWORD" -}}{{- end -}}
{{- $config = mergeOverwrite (dict "share" $told) (deepCopy $config) -}}
{{- end -}}
{{- if $config }}{{ toYaml $config }}{{ end -}}
{{- end }}
