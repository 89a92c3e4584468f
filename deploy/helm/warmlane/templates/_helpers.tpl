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
