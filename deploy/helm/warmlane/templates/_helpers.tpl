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
{{- if $config }}{{ toYaml $config }}{{ end -}}
{{- end }}
