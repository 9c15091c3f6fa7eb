// A client of the admin API that uses the browser's sign-in, and the types of its answers.

export interface Session {
  id: string;
  name: string;
  csrf: string;
  version: string;
  url: string;
  time: number;
}

export interface ModelView {
  id: string;
  upstream: string;
  ready: boolean;
  context_tokens: number | null;
  slots_total: number | null;
  slots_busy: number;
  queued: number;
  prefill_tps: number | null;
  decode_tps: number | null;
}

export interface NodeView {
  id: string;
  name: string;
  state: "ready" | "starting" | "draining" | "reconnecting" | "offline";
  models: string[];
  serving: ModelView[];
  slots_total: number | null;
  slots_busy: number;
  queued: number;
  reconnects: number;
  copied: boolean;
  version: string;
  may_deploy: boolean;
  joined_at: number;
  connected_at: number | null;
  detail: Record<string, unknown>;
}

export interface Deployment {
  id: string;
  node: string;
  node_id: string;
  model: string;
  state: string;
  reason: string;
  swap_error: string;
  context: number;
  context_served: number | null;
  slots: number;
  size_bytes: number;
  in_flight: number;
  progress: { done_bytes: number; total_bytes: number; rate_bps: number; eta_s: number | null } | null;
}

export interface RequestRow {
  id: string;
  key_id: string;
  key_name: string;
  model: string;
  node: string;
  state: "queued" | "prefill" | "streaming";
  reason: string;
  attempts: number;
  started_at: number;
  queue_ms: number;
  ttft_ms: number | null;
  prompt_tokens: number;
}

export interface Limits {
  rpm: number | null;
  tpm: number | null;
  concurrency: number | null;
  monthly_tokens: number | null;
  expires_at: number | null;
  models: string[];
  nodes: string[];
  local_only: boolean;
  priority: number;
  continue: boolean;
}

export interface KeyView {
  id: string;
  name: string;
  prefix: string;
  limits: Limits;
  created_at: number;
  revoked_at: number | null;
}

export interface UsageRow {
  group: string;
  requests: number;
  errors: number;
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  ttft_p50_ms: number | null;
  ttft_p99_ms: number | null;
  tokens_per_s: number | null;
}

export interface Usage {
  by: string;
  data: UsageRow[];
  names: Record<string, string>;
  /** The sum of the rows that `data` omits. */
  others: UsageRow | null;
  other_groups: number;
}

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

let csrf = "";
let onSignedOut = () => {};

/** Called when the sign-in has ended. */
export function whenSignedOut(tell: () => void): void {
  onSignedOut = tell;
}

async function ask<T>(method: string, path: string, body?: unknown): Promise<T> {
  const headers: Record<string, string> = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (method !== "GET" && csrf) headers["x-wai-csrf"] = csrf;
  const init: RequestInit = { method, headers, credentials: "same-origin" };
  if (body !== undefined) init.body = JSON.stringify(body);
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new ApiError("The relay does not answer. Check that it runs and that you are online, then try again.", 0);
  }
  const answer = response.status === 204 ? null : await response.json().catch(() => null);
  if (!response.ok) {
    if (response.status === 401 && csrf) {
      csrf = "";
      onSignedOut();
    }
    throw new ApiError(answer?.error?.message ?? `The relay answered ${response.status}.`, response.status);
  }
  return answer as T;
}

const base = "/admin/v1";
export const get = <T>(path: string) => ask<T>("GET", base + path);
export const post = <T>(path: string, body: unknown = {}) => ask<T>("POST", base + path, body);
export const patch = <T>(path: string, body: unknown) => ask<T>("PATCH", base + path, body);
export const remove = <T>(path: string) => ask<T>("DELETE", base + path);

const sessionPath = "/dashboard/session";

/** A signed-in browser. */
export interface SignIn {
  id: string;
  admin: string;
  created_at: number;
  used_at: number;
  expires_at: number;
  address: string;
  user_agent: string;
}

export async function signIn(token: string): Promise<Session> {
  const session = await ask<Session>("POST", sessionPath, { token });
  csrf = session.csrf;
  return session;
}

/** The admin who is signed in with this browser, or null. Throws `ApiError` if the relay can't say. */
export async function currentSession(): Promise<Session | null> {
  const session = await ask<Session | null>("GET", sessionPath);
  csrf = session?.csrf ?? "";
  return session;
}

/** Check whether the sign-in is still valid, and report if it has ended. */
export async function checkSession(): Promise<void> {
  const known = csrf;
  const session = await currentSession().catch(() => undefined);
  if (known && session === null) onSignedOut();
}

export async function signOut(): Promise<void> {
  await ask<null>("DELETE", sessionPath);
  csrf = "";
}
