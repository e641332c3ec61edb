// What smtp-sentinel.json must be, out of Grafana's own types: the dashboard, and for each kind of panel that it has the
// options and the custom fields of that kind. The test pastes the JSON behind `const dashboard: Sentinel =`, so that the
// compiler also refuses keys that no type knows. Queries are the Prometheus plugin's, which @grafana/schema has no types of.
import type { AnnotationQuery, Dashboard, DataSourceRef, FieldConfig, FieldConfigSource, Panel, VariableModel } from '@grafana/schema';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as timeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// JSON has the values of enums, and TypeScript takes only their names: string enums become their strings.
type Json<T> = T extends string
  ? string extends T ? string : `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends readonly (infer Item)[] ? Json<Item>[]
  : T extends object ? { [Key in keyof T]: Json<T[Key]> }
  : T;

interface Query {
  refId: string;
  datasource: DataSourceRef;
  expr: string;
  legendFormat: string;
  range: true;
  format?: 'heatmap' | 'time_series';
}

type Of<Type extends string, Options, Custom> =
  Json<Required<Pick<Panel, 'id' | 'title' | 'description' | 'gridPos' | 'datasource'>>> & {
    type: Type;
    options: Json<Options>;
    fieldConfig: Json<Pick<FieldConfigSource, 'overrides'>>
      & { defaults: Json<Omit<FieldConfig, 'custom'>> & { custom: Json<Custom> } };
    targets: Query[];
  };

type Annotation = Json<Pick<AnnotationQuery, 'name' | 'enable' | 'iconColor' | 'datasource'>>
  & { expr: string; step: string; titleFormat: string; textFormat: string };

export type Sentinel = Json<Omit<Dashboard, 'annotations' | 'panels' | 'templating'>> & {
  annotations: { list: Annotation[] };
  templating: { list: Json<VariableModel>[] };
  panels: (
    | Of<'heatmap', heatmap.Options, heatmap.FieldConfig>
    | Of<'state-timeline', timeline.Options, timeline.FieldConfig>
    | Of<'timeseries', timeseries.Options, timeseries.FieldConfig>
  )[];
};
